"""`fl recipe data`: the first rows as the model will see them, made by the trainer in the environment of `fl run --engine host`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl import builtin, modelscope, paths, ui, wheel
from fl.errors import EngineError, FlError, RecipeError

if TYPE_CHECKING:
    from rich.text import Text

    from fl.decide import Decision

MODULE: Final = "fl_trainers.show_data"
OPEN, CLOSE = "⟦", "⟧"
"""Around what is trained, where there are no colours."""
EVALUATION: Final = "in evaluation: "
"""How causes begin that are of rows for evaluation: those are not among the rows read."""


def look(decision: Decision, rows: int, report: Callable[[str], None]) -> dict[str, Any]:
    """The rows and counts; RecipeError with the trainer's words where the data cannot be used. Nothing is left behind."""
    from fl.engines import environment
    from fl.images import lock

    if decision.lock is not None and environment.ready(decision.lock, decision.stack.python) is None:
        environment.ensure(decision.lock, decision.stack.python, report, lock.BUILD_CONSTRAINTS)
    if "PYTHONPATH" in decision.plan.environment:
        wheel.unpack_code(paths.cache_home())
    builtin.fetch(decision.config.model.name, report)
    modelscope.fetch(modelscope.asked(decision.config), report, lambda: None)
    with tempfile.TemporaryDirectory(prefix="fl-data-") as work:
        folder = Path(work)
        run = decision.config.run.model_copy(update={"events": str(folder / "events.jsonl")})
        decision.config.model_copy(update={"run": run}).write(folder / "config.json")
        said = _ask(decision, folder, rows)
        warnings = [event.get("message", "") for event in _events(folder / "events.jsonl") if event.get("code") not in (None, "rows")]
    config = decision.config
    return {
        "schema": 1, "recipe": decision.recipe.name, "model": config.model.name, "stage": config.method.stage,
        "template": config.data.template, "cutoff_len": config.data.cutoff_len, "warnings": warnings, **said,
    }  # fmt: skip


def _ask(decision: Decision, folder: Path, rows: int) -> dict[str, Any]:
    from fl.engines.host import child_environment

    out = folder / "rows.json"
    argv = [decision.plan.argv[0], "-m", MODULE, str(folder / "config.json"), str(out), str(rows)]
    try:
        done = subprocess.run(
            argv, cwd=decision.plan.working_directory, env=child_environment(decision.plan, decision.secrets, os.environ),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        said: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    except FileNotFoundError:
        tail = "\n".join(f"  | {line}" for line in (done.stderr or done.stdout).rstrip().splitlines()[-12:])
        raise EngineError(f"The trainer ended with {done.returncode} and showed no rows:\n{tail}", "fl doctor") from None
    except OSError as error:
        raise EngineError(f"{argv[0]} cannot be started: {error.strerror}", "fl env shows the Pythons that fl uses") from error
    if "error" in said:
        kind: type[FlError] = RecipeError if done.returncode == RecipeError.exit_code else EngineError
        raise kind(said["error"]["message"], said["error"]["remedy"])
    return said


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def draw(found: Mapping[str, Any], *, ids: bool) -> None:
    """Every row as text, what is trained in green and the rest dim; then the counts. `ids`: the token ids as well."""
    from rich.console import Console
    from rich.text import Text

    plain = not ui.coloured(sys.stdout)
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False, no_color=plain, soft_wrap=False)
    mark = f"between {OPEN} and {CLOSE}" if plain else "green"
    console.print(Text(f"{found['model']}, stage {found['stage']}, template {found['template'] or 'of the tokenizer'}; trained: {mark}"))
    for number, row in enumerate(found["rows"], 1):
        for part in row["parts"]:
            console.print()
            console.print(Text(_title(number, row, part), style="bold"))
            console.print(_text(part["spans"], plain=plain))
            if ids:
                console.print(_ids(part, plain=plain))
    console.print()
    for line in summary(found):
        console.print(Text(ui.clean(line)))


def _title(number: int, row: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    trained = sum(span["tokens"] for span in part["spans"] if span["trained"])
    about = [row["where"], part["name"]]
    about += ["liked" if row["liked"] else "not liked"] if "liked" in row else []
    about += [f"{len(row['packed'])} rows of {', '.join(map(str, row['packed'][:8]))} tokens"] if "packed" in row else []
    return f"{number}  " + ", ".join([*(ui.clean(text) for text in about if text), f"{len(part['input_ids'])} tokens, {trained} trained"])


def _text(spans: Sequence[Mapping[str, Any]], *, plain: bool) -> Text:
    from rich.text import Text

    text = Text()
    for span in spans:
        said = "\n".join(ui.clean(line) for line in str(span["text"]).split("\n"))
        if plain:
            text.append(f"{OPEN}{said}{CLOSE}" if span["trained"] else said)
        else:
            text.append(said, style="green" if span["trained"] else "dim")
    return text


def _ids(part: Mapping[str, Any], *, plain: bool) -> Text:
    """The ids; a label that is another token than the input stands behind it."""
    from rich.text import Text

    text = Text("ids ", style="" if plain else "dim")
    for token, label in zip(part["input_ids"], part["labels"], strict=True):
        trained = label >= 0
        word = f"{token}" if label in (token, -100) else f"{token}→{label}"
        text.append((f"{OPEN}{word}{CLOSE}" if trained and plain else word) + " ", style="green" if trained and not plain else "")
    return text


def summary(found: Mapping[str, Any]) -> list[str]:
    """Counts as lines: rows used, cut and dropped, each cause with the first rows it happened to."""
    counts, causes = found["counts"], found["causes"]
    dropped = sum(cause["rows"] for cause in causes if cause["dropped"] and not cause["reason"].startswith(EVALUATION))
    lines = ["streaming: only the first rows were read"] if counts["streaming"] else []
    head = f"{counts['read']:,} rows read, {counts['used']:,} used, {dropped:,} dropped; {counts['sequences']:,} sequences"
    if counts.get("repeated"):
        head += f"; {counts['repeated']:,} times a row comes again"
    if counts.get("eval_rows"):
        head += f"; {counts['eval_rows']:,} rows for evaluation"
    lines.append(head)
    if counts.get("tokens"):
        share = counts["trained_tokens"] / counts["tokens"]
        lines.append(f"{counts['tokens']:,} tokens, {counts['trained_tokens']:,} of them trained ({share:.0%}); "
                     f"the longest sequence has {counts['longest']:,} of {found['cutoff_len']:,}")  # fmt: skip
    for cause in causes:
        what = "dropped" if cause["dropped"] else "cut"
        more = ", …" if cause["rows"] > len(cause["examples"]) else ""
        lines.append(f"{what}: {cause['rows']:,} × {cause['reason']} ({', '.join(cause['examples'])}{more})")
    return [*lines, *(f"warning: {text}" for text in found["warnings"])]
