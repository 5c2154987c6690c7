"""How long `fl audit` takes on a ledger of 20,000 records: first without an index, then with one.

    python bench/audit.py [RECORDS]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import FL, figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit"))

WANTED = {"without an index": 10.0, "indexed": 1.0}


def fill(ledger: Path, count: int) -> None:
    """Records of many models on every stack, made and filed as runs' are."""
    from ledger_records import record

    from fl import ledger as ledgers
    from fl.matrix import load

    stacks = load().stacks
    for number in range(count):
        stack = stacks[number % len(stacks)]
        made = record(
            time=f"2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}T{number % 24:02d}:{number // 24 % 60:02d}:00Z",
            lane=stack.lane, stack=stack.id, model={"name": f"acme/model-{number % 211}"}, recipe_sha256=f"{number:064d}",
            metrics={"loss": [1.0 + number / (step + 1) for step in range(40)]},
        )  # fmt: skip
        target = ledgers.place(ledger, made)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(made, indent=1), encoding="utf-8")  # ledger.add syncs each, which is not measured here


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as work:
        fill(Path(work, "evidence"), count)
        environment = {**os.environ, "XDG_CACHE_HOME": f"{work}/cache"}
        late = False
        for name, most in WANTED.items():
            began = time.perf_counter()
            subprocess.run([*FL, "audit", "--json"], cwd=work, env=environment, stdout=subprocess.DEVNULL, check=True)
            took = time.perf_counter() - began
            late = late or took > most
            figure(f"fl audit --json, {count} records, {name}", took, "s", most)
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
