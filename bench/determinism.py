"""The same recipe and seed twice, one thread: the losses must be the same to the last printed digit.

    python bench/determinism.py [RECIPE] [STEPS]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from figures import FL, figure, run


def losses(recipe: str, steps: int) -> list[float]:
    """Every logged loss of one run on the host engine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = (f"max_steps={steps}", f"output_dir={folder / 'out'}", "save_strategy=no", "logging_steps=1")
        environment = {"OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder / "state")}
        record = json.loads(run((*FL, "run", "--engine", "host", "--json", recipe, *overrides), environment).output)
    found: list[float] = record["metrics"]["loss"]
    if len(found) != steps:
        sys.exit(f"{recipe}: {len(found)} losses were logged, {steps} steps were asked for")
    return found


def main() -> int:
    recipe = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    first, second = losses(recipe, steps), losses(recipe, steps)
    different = sum(a != b for a, b in zip(first, second, strict=True))
    print(f"  {' '.join(map(str, first))}\n  {' '.join(map(str, second))}")
    return 0 if figure(f"{recipe}, two runs with one thread: steps whose loss differs", different, f"of {steps}", 0) else 1


if __name__ == "__main__":
    sys.exit(main())
