"""What `fl run --engine docker` adds to `docker run` of the same argv. Needs a docker engine and the CPU row's image.

Two figures: the launcher's own time from the end of its decision to the container's start and from the container's end to its own; and the
whole command beside the whole `docker run`, median of N.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N = 5
ROOT = Path(__file__).resolve().parents[1]


def seconds(argv: list[str], environment: dict[str, str]) -> tuple[float, str]:
    begin = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if done.returncode:
        sys.exit(f"overhead: {' '.join(argv[:6])} … failed: {done.stderr[-800:]}")
    return time.monotonic() - begin, done.stdout


def docker_alone(argv: list[str], folder: Path, environment: dict[str, str]) -> float:
    """The plan's argv in the foreground, with the run folder as `fl run` leaves it."""
    foreground = [word for word in argv if word != "--detach"]
    subprocess.run(["docker", "rm", "--force", argv[argv.index("--name") + 1]], capture_output=True, check=False, env=environment)
    (folder / "events.jsonl").write_text("")
    return seconds(foreground, environment)[0]


def main() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        print("overhead: skipped, no docker daemon answers")
        return
    place = Path(tempfile.mkdtemp(prefix="fl-bench-"))
    environment = {**os.environ, "XDG_STATE_HOME": str(place / "state")}
    fl = [sys.executable, "-m", "fl", "run", "--engine", "docker", "--json", "tiny-sft", "max_steps=2", f"output_dir={place}/out"]
    seconds(fl, environment)  # fills caches
    ours = [seconds(fl, environment)[0] for _ in range(N)]
    folder = max((place / "state" / "fl" / "runs").iterdir(), key=lambda f: f.stat().st_mtime)
    argv = json.loads((folder / "plan.json").read_text())["argv"]
    theirs = [docker_alone(argv, folder, environment) for _ in range(N)]
    subprocess.run(["docker", "rm", "--force", argv[argv.index("--name") + 1]], capture_output=True, check=False)
    added = statistics.median(ours) - statistics.median(theirs)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"fl run --engine docker adds: {added:.2f} s to docker run of the same argv (limit 1 s, ratio {ratio:.2f})")
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
