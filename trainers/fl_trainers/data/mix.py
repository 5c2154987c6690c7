"""Several data sets become one, and one becomes training and evaluation rows. Pure functions over indices."""

from __future__ import annotations

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
    """All of `woven`, from rows that are at hand."""
    return list(woven([partial(iter, rows) for rows in sets], strategy, probabilities, seed))


def woven(sets: Sequence[Callable[[], Iterator[T]]], strategy: str, probabilities: Sequence[float], seed: int) -> Iterator[T]:
    """concat; or interleave: _under ends with the first exhausted set, _over repeats until all were read, _once reads each row once.

    A set is what gives its rows from the beginning each time that it is called.
    """
    if strategy == "concat" or len(sets) == 1:
        for begin in sets:
            yield from begin()
        return
    rng = random.Random(seed)
    open_sets = [_Peeking(begin) for begin in sets]
    turn = 0
    while not all(one.done for one in open_sets):
        if probabilities:
            which = rng.choices(range(len(sets)), weights=probabilities)[0]
        else:
            which, turn = turn % len(sets), turn + 1
        chosen = open_sets[which]
        if strategy == "interleave_once" and chosen.done:
            continue
        if chosen.empty:
            return
        yield chosen.take()
        if chosen.done and strategy == "interleave_under":
            return


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
    held = round(len(rows) * val_size) if val_size < 1 else int(val_size)
    if held >= len(rows) and val_size > 1:
        raise InputError(
            f"val_size: {held} rows are to be held back, and there are {len(rows)}", "a smaller number, or a share: val_size: 0.1"
        )
    held = max(1, min(held, len(rows) - 1))
    chosen = set(random.Random(seed).sample(range(len(rows)), held))
    return [row for index, row in enumerate(rows) if index not in chosen], [rows[index] for index in sorted(chosen)]
