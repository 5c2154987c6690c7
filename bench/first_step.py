"""Wall time from `fl run quickstart` to the first training step, on the host engine with warm caches. A first run, not counted, warms them.

    python bench/first_step.py [TIMES]
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

from figures import FL, ROOT, figure


def first_step(folder: Path) -> float:
    """Seconds until the first step event; two steps are trained. State and output go to `folder`, the cache is the caller's."""
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    overrides = ("max_steps=2", f"output_dir={folder / 'out'}", "save_strategy=no")
    started = time.time()
    done = subprocess.run(
        (*FL, "run", "--engine", "host", "quickstart", *overrides), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"fl run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    (events,) = (folder / "state").glob("fl/runs/*/events.jsonl")
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "step":
            return _seconds(event["time"]) - started
    sys.exit(f"{events} holds no step")


def _seconds(value: float | str) -> float:
    from datetime import datetime

    return float(value) if isinstance(value, int | float) else datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    taken = []
    for number in range(times + 1):
        with tempfile.TemporaryDirectory() as folder:
            seconds = first_step(Path(folder))
        if number:
            taken.append(seconds)
    return 0 if figure("fl run quickstart, to the end of the first step", statistics.median(taken), "s", 12) else 1


if __name__ == "__main__":
    sys.exit(main())
