"""Several short rows in one long one. Pure functions over lengths and ids."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

from fl_trainers.data.encode import Encoded


def knapsacks(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of rows by pack, greedily: the longest row that is left, then always the longest that still fits.

    Rows longer than `capacity` are in no pack.
    """
    order = sorted((length, index) for index, length in enumerate(lengths) if length <= capacity)
    packs: list[list[int]] = []
    while order:
        room, pack = capacity, []
        while order:
            at = bisect.bisect_right(order, (room, len(lengths))) - 1
            if at < 0:
                break
            length, index = order.pop(at)
            room -= length
            pack.append(index)
        packs.append(pack)
    return packs


def pack(rows: Sequence[Encoded], capacity: int) -> list[tuple[Encoded, list[int]]]:
    """Packs of rows, each with the lengths of the rows in it."""
    packed = []
    for indices in knapsacks([len(row.input_ids) for row in rows], capacity):
        joined = Encoded([], [])
        for index in indices:
            joined.input_ids += rows[index].input_ids
            joined.labels += rows[index].labels
        packed.append((joined, [len(rows[index].input_ids) for index in indices]))
    return packed


def blocks(documents: Iterable[list[int]], size: int) -> Iterator[list[int]]:
    """Documents one after another, cut into blocks of `size`. What is left behind the last whole block is left out, as LLaMA-Factory
    leaves it out (a block more, and shuffled rows would be others); where there is no whole block it is one by itself."""
    rest: list[int] = []
    cut = False
    for document in documents:
        rest += document
        whole = len(rest) // size * size
        for start in range(0, whole, size):
            cut = True
            yield rest[start : start + size]
        rest = rest[whole:]
    if rest and not cut:
        yield rest
