"""Broken machines by the hundred thousand: our own records with accidents of every kind, through the whole of detection.

    python bench/fuzz.py [INPUTS]

Prints inputs, crashes, the slowest one and the peak memory. Every answer must be a JSON document without control characters.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "unit")]

from figures import figure  # noqa: E402
from fuzzing import broken, check, seeds  # noqa: E402

INPUTS = 200_000
SECONDS, MEGABYTES = 2.0, 100.0
RARE = 0.01
"""Share of the accidents that make a text huge (2 MiB) or deeply nested; they cost most of the time."""


def main() -> int:
    inputs = int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS
    crashes, slowest, devices, problems, worst = 0, 0.0, 0, 0, ""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        machines = seeds(Path(folder))
        for number in range(inputs):
            dice = random.Random(number)
            machine = broken(dice.choice(machines), dice, RARE)
            started = time.process_time()
            try:
                hardware = check(machine)
            except Exception:  # noqa: BLE001 - a crash of whatever kind is what is looked for
                crashes += 1
                print(f"input {number}:\n{traceback.format_exc(limit=-3)}", flush=True)
                continue
            taken = time.process_time() - started
            if taken > slowest:
                slowest, worst = taken, f"input {number}"
            devices += len(hardware.accelerators)
            problems += len(hardware.problems)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{inputs} inputs in {time.monotonic() - begin:.0f} s from {len(machines)} machines; {devices} devices, {problems} problems")
    good = figure("fuzz, crashes", crashes, "inputs", 0)
    good &= figure(f"fuzz, slowest ({worst})", slowest, "s of processor time", SECONDS)
    good &= figure("fuzz, peak memory with the inputs", memory, "MB", MEGABYTES)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
