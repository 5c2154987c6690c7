"""Seconds of `fl doctor` without an engine (its limit), and with the engines of this machine.

    python bench/doctor.py [TIMES]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from figures import FL, ROOT, figure, median

LIMIT = 1.0


def wall(path: str) -> float:
    """Seconds of one call; its exit code says how the machine is, not whether it worked."""
    environment = {**os.environ, "PATH": path}
    begin = time.monotonic()
    done = subprocess.run((*FL, "doctor", "--json"), env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3, 6, 7):
        sys.exit(f"fl doctor ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.monotonic() - begin


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    no_engine = str(Path(sys.executable).parent)
    good = figure("fl doctor, no engine installed", median(lambda: wall(no_engine), times), "s", LIMIT)
    figure("fl doctor, this machine's engines", median(lambda: wall(os.environ.get("PATH", os.defpath)), times), "s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
