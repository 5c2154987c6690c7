"""What `fl run --engine docker` adds to `docker run` of the same argv: wall time of both, in turns. Needs the image of the stack that fits.

    python bench/overhead.py [TIMES]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import FL, figure, run, skip

RECIPE = "tiny-sft"


def with_fl(folder: Path) -> float:
    """Seconds that fl takes; the run's folder stays below `folder`."""
    environment = {"XDG_STATE_HOME": str(folder / "state")}
    return run((*FL, "run", "--engine", "docker", "--json", RECIPE, f"output_dir={folder / 'out'}"), environment).wall


def without(folder: Path) -> float:
    """Seconds that the argv of that run takes by itself: start, wait for the end, read the log, remove."""
    (plan,) = (folder / "state").glob("fl/runs/*/plan.json")
    argv: list[str] = json.loads(plan.read_text(encoding="utf-8"))["argv"]
    started = time.monotonic()
    begun = subprocess.run(argv, capture_output=True, text=True, check=False)
    if begun.returncode != 0:
        sys.exit(f"docker run ended with {begun.returncode}:\n{begun.stderr[-2000:]}")
    if "--detach" in argv or "-d" in argv:
        name = begun.stdout.strip()
        code = subprocess.run(("docker", "wait", name), capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run(("docker", "logs", name), capture_output=True, check=True)
        taken = time.monotonic() - started
        subprocess.run(("docker", "rm", "-f", name), capture_output=True, check=False)
        if code != "0":
            sys.exit(f"the container ended with {code}")
        return taken
    return time.monotonic() - started


def main() -> int:
    planned = subprocess.run((*FL, "run", "--engine", "docker", "--dry-run", "--json", RECIPE), capture_output=True, text=True, check=False)
    document = json.loads(planned.stdout or "{}")
    if planned.returncode != 0 or document["image"]["source"] != "local":
        reason = document.get("error", {}).get("message") or f"no image {document.get('image', {}).get('reference')} here"
        skip("overhead of fl run", reason)
        return 0
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    ours, plain = [], []
    # The environment's XDG_CACHE_HOME is kept, so that compilers' caches are warm for both.
    for number in range(times + 1):
        with tempfile.TemporaryDirectory(dir=os.environ.get("HOME")) as name:
            taken = with_fl(Path(name)), without(Path(name))
        if number:
            ours.append(taken[0])
            plain.append(taken[1])
    added = statistics.median(a - b for a, b in zip(ours, plain, strict=True))
    figure("docker run of the same argv", statistics.median(plain), "s")
    return 0 if figure("fl run --engine docker, added to it", added, "s", 1) else 1


if __name__ == "__main__":
    sys.exit(main())
