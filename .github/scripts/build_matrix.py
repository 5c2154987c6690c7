"""`fl images list --json` as a job matrix of GitHub Actions: `images=[…]` for GITHUB_OUTPUT, or with --names `names=[…]`,
one for all platforms.

BASE, a revision: only what changed since it, where that revision is there. What has no whole lock cannot be built and is left out.
--few, for pull requests: of the images in which only our own code is another one, the first of each platform, since they share that layer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

RUNNERS = {"linux/amd64": "ubuntu-24.04", "linux/arm64": "ubuntu-24.04-arm"}


def listed() -> list[dict[str, Any]]:
    """The images, as fl names them."""
    command = ["fl", "images", "list", "--json"]
    base = os.environ.get("BASE", "")
    known = ["git", "cat-file", "-e", f"{base}^{{commit}}"]
    if base.strip("0") and subprocess.run(known, capture_output=True, check=False).returncode == 0:
        command += ["--changed-since", base]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout)["images"])


def main(arguments: list[str]) -> None:
    """Writes one line."""
    images = [one for one in listed() if one["lock_sha256"]]
    if "--few" in arguments:
        code = [one for one in images if one.get("changed") == ["code"]]
        first = list({one["platform"]: one for one in reversed(code)}.values())
        images = [one for one in images if one not in code or one in first]
    if "--names" in arguments:
        pairs = dict.fromkeys((one["stack"], one["flavor"]) for one in images)
        sys.stdout.write("names=" + json.dumps([{"stack": stack, "flavor": flavor} for stack, flavor in pairs]) + "\n")
        return
    jobs = [{**{key: one[key] for key in ("stack", "flavor", "platform")}, "runner": RUNNERS[one["platform"]]} for one in images]
    sys.stdout.write("images=" + json.dumps(jobs) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
