"""Several data sets become one, and one becomes training and evaluation rows. Pure functions over indices.

Orders are those of `datasets` (interleave_datasets, train_test_split), which LLaMA-Factory uses: the same seed gives the same rows.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar, cast

from fl_trainers.errors import InputError

T = TypeVar("T")


def resample(rows: Sequence[T], wanted: int, seed: int) -> list[T]:
    """`wanted` rows in random order; beyond the number there is, rows repeat."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(rows)), min(wanted, len(rows)))
    chosen += rng.choices(range(len(rows)), k=wanted - len(chosen))
    return [rows[index] for index in chosen]


def mix(sets: Sequence[Sequence[T]], strategy: str, probabilities: Sequence[float], seed: int) -> list[T]:
    """All of `woven`, from rows that are at hand; where sets take turns the last round is whole, though one is at its end."""
    if strategy in ("interleave_under", "interleave_over") and not probabilities and len(sets) > 1 and all(sets):
        rounds = (min if strategy == "interleave_under" else max)(map(len, sets))
        return [rows[at % len(rows)] for at in range(rounds) for rows in sets]
    return list(woven([partial(iter, rows) for rows in sets], strategy, probabilities, seed))


def woven(sets: Sequence[Callable[[], Iterator[T]]], strategy: str, probabilities: Sequence[float], seed: int) -> Iterator[T]:
    """concat; or interleave: _under ends with the first exhausted set, _over repeats until all were read, _once reads each row once.

    A set is what gives its rows from the beginning each time that it is called.
    """
    if strategy == "concat" or len(sets) == 1:
        for begin in sets:
            yield from begin()
        return
    open_sets = [_Peeking(begin) for begin in sets]
    order = _drawn(probabilities, seed) if probabilities else itertools.cycle(range(len(sets)))
    while not all(one.done for one in open_sets):
        chosen = open_sets[next(order)]
        if strategy == "interleave_once" and chosen.done:
            continue
        if chosen.empty:
            return
        yield chosen.take()
        if chosen.done and strategy == "interleave_under":
            return


def _drawn(probabilities: Sequence[float], seed: int) -> Iterator[int]:
    """Sets by their shares, a thousand at once as `datasets` draws them."""
    import numpy

    total = sum(probabilities)
    shares = probabilities if abs(total - 1) < 1e-8 else [share / total for share in probabilities]
    generator = numpy.random.default_rng(seed)
    while True:
        yield from generator.choice(len(shares), size=1000, p=shares).tolist()


class _Peeking(Generic[T]):
    """Rows one by one, over and over; `done` as soon as the last row was given for the first time."""

    def __init__(self, begin: Callable[[], Iterator[T]]) -> None:
        self._begin = begin
        self._rows = begin()
        self._ahead = next(self._rows, _END)
        self.done = self.empty = self._ahead is _END

    def take(self) -> T:
        row = self._ahead
        self._ahead = next(self._rows, _END)
        if self._ahead is _END:
            self.done = True
            self._rows = self._begin()
            self._ahead = next(self._rows, _END)
        return cast("T", row)


_END: Any = object()


def shuffled(rows: Iterable[T], size: int, seed: int) -> Iterator[T]:
    """Rows in random order within a buffer of `size`: each that comes in takes the place of one that goes out."""
    rng = random.Random(seed)
    held: list[T] = []
    for row in rows:
        if len(held) < size:
            held.append(row)
        else:
            at = rng.randrange(size)
            held[at], row = row, held[at]
            yield row
    rng.shuffle(held)
    yield from held


def split(rows: Sequence[Any], val_size: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Rows for training and for evaluation, drawn at random; below 1 `val_size` is a share, else a number of rows."""
    if not val_size:
        return list(rows), []
    import numpy

    held = math.ceil(len(rows) * val_size) if val_size < 1 else int(val_size)
    if held >= len(rows) and val_size > 1:
        raise InputError(
            f"val_size: {held} rows are to be held back, and there are {len(rows)}", "a smaller number, or a share: val_size: 0.1"
        )
    held = max(1, min(held, len(rows) - 1))
    order = numpy.random.default_rng(seed).permutation(len(rows)).tolist()
    return [rows[index] for index in order[held:]], [rows[index] for index in order[:held]]
