"""What every benchmark shares: the command under test, processor time of a child, and one line a figure."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "bench" / "results"
"""Kept between runs, not in git."""
FL = (sys.executable, "-m", "fl")


@dataclass(frozen=True, slots=True)
class Spent:
    """What one command took, its children included."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of user and system time."""
    output: str


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Spent:
    """Runs a command to its end; SystemExit with its last words when it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, cwd=cwd, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall=wall, processor=processor, output=done.stdout)


def median(measure: Callable[[], float], times: int) -> float:
    """The median of several measurements, one before them not counted (caches, bytecode)."""
    measure()
    return statistics.median(measure() for _ in range(times))


def figure(name: str, value: float, unit: str, limit: float | None = None, peer: tuple[str, float] | None = None) -> bool:
    """Prints `name: value unit (limit, ratio to a peer)`; False when the value is over its limit."""
    notes = []
    if limit is not None:
        notes.append(f"limit {limit:g} {unit}" + ("" if value <= limit else ", EXCEEDED"))
    if peer is not None:
        notes.append(f"{value / peer[1]:.2f} x {peer[0]}, which takes {peer[1]:.3g} {unit}")
    print(f"{name}: {value:.3g} {unit}" + (f" ({'; '.join(notes)})" if notes else ""), flush=True)
    return limit is None or value <= limit


def skip(name: str, reason: str) -> None:
    """Says why a figure was not measured."""
    print(f"{name}: not measured ({reason})", flush=True)
