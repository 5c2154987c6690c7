"""Several data sets become one, and one becomes training and evaluation rows. Pure functions over indices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def resample(rows: Sequence[T], wanted: int, seed: int) -> list[T]:
    """`wanted` rows in random order; beyond the number there is, rows repeat."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(rows)), min(wanted, len(rows)))
    chosen += rng.choices(range(len(rows)), k=wanted - len(chosen))
    return [rows[index] for index in chosen]


def mix(sets: Sequence[Sequence[T]], strategy: str, probabilities: Sequence[float], seed: int) -> list[T]:
    """concat; or interleave: _under ends with the first exhausted set, _over repeats until all were read, _once reads each row once."""
    if strategy == "concat" or len(sets) == 1:
        return [row for rows in sets for row in rows]
    rng = random.Random(seed)
    at, done = [0] * len(sets), [not rows for rows in sets]
    mixed: list[T] = []
    turn = 0
    while not all(done):
        if probabilities:
            which = rng.choices(range(len(sets)), weights=probabilities)[0]
        else:
            which, turn = turn % len(sets), turn + 1
        if strategy == "interleave_once" and done[which]:
            continue
        if not sets[which]:
            break
        mixed.append(sets[which][at[which] % len(sets[which])])
        at[which] += 1
        done[which] = done[which] or at[which] == len(sets[which])
        if done[which] and strategy == "interleave_under":
            break
    return mixed


def split(rows: Sequence[Any], val_size: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Rows for training and for evaluation, drawn at random; below 1 `val_size` is a share, else a number of rows."""
    if not val_size:
        return list(rows), []
    held = round(len(rows) * val_size) if val_size < 1 else int(val_size)
    held = max(1, min(held, len(rows) - 1))
    chosen = set(random.Random(seed).sample(range(len(rows)), held))
    return [row for index, row in enumerate(rows) if index not in chosen], [rows[index] for index in sorted(chosen)]
