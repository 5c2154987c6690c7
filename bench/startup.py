"""Processor time of the commands that people type most, beside `ramalama version`, a launcher of the same kind that also detects hardware.

    python bench/startup.py [TIMES]
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from figures import CACHE, FL, figure, median, run, skip

COMMANDS = (
    ("fl --help", ("--help",), 0.15),
    ("fl hw --json", ("hw", "--json"), 0.3),
    ("fl run --dry-run quickstart --json", ("run", "--dry-run", "quickstart", "--json"), 0.5),
    ("fl matrix check", ("matrix", "check"), 1.0),
)


def peer() -> Path | str:
    """The peer's program in an environment of its own, or why there is none."""
    folder = CACHE / "ramalama"
    program = folder / "bin" / "ramalama"
    if not program.exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "ramalama"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not program.exists():
            return "ramalama could not be installed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    return program


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    program = peer()
    beside = None
    if isinstance(program, Path):
        taken = median(lambda: run((str(program), "version")).processor, times)
        beside = ("ramalama version", taken)
        figure("ramalama version", taken, "s of processor time")
    else:
        skip("ramalama version", program)
    good = True
    for name, arguments, limit in COMMANDS:
        taken = median(lambda arguments=arguments: run((*FL, *arguments)).processor, times)  # type: ignore[misc]
        good &= figure(name, taken, "s of processor time", limit, beside)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
