"""Torch that is newer than every row of a lane: no row moves to it by itself, a new one is proposed for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import Version

from fl import matrix_row
from fl.errors import MatrixError

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack
    from fl.matrix_update import Resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Newer:
    """A release of torch that a lane has no row for."""

    lane: str
    sibling: str
    """The lane's row with the newest torch."""
    before: str
    torch: str
    refused: tuple[str, ...] = ()
    """What the rules say against a copy of the sibling with it; empty: `command` proposes one."""

    @property
    def command(self) -> str:
        """What proposes the row."""
        return f"fl matrix update {self.sibling} --torch {self.torch}"


def torches(matrix: Matrix, resolve: Resolve) -> list[Newer]:
    """One entry for each lane whose torch comes from the ordinary index, where that has a newer minor release. What cannot be asked for is
    left out: rows say so themselves."""
    found = []
    for stack in _newest_rows(matrix):
        now = str(stack.train["torch"])
        major = Version(now).major
        try:
            seen = resolve(stack, "train", {"torch": f"{major}.*,>={Version(now).public}"}, stack.hosts.platforms[0]).get("torch", now)
        except MatrixError:
            continue
        newest = Version(seen).public
        if Version(newest).release[:2] > Version(now).release[:2]:
            wrong = matrix_row.propose(matrix, stack, newest, None, _no_lock).findings
            found.append(Newer(lane=stack.lane, sibling=stack.id, before=now, torch=newest, refused=wrong))
    return found


def _newest_rows(matrix: Matrix) -> Iterator[Stack]:
    """Of each lane the row with the newest torch of the ordinary index; torch-npu decides of itself what it goes with."""
    rows = [
        stack for stack in matrix.stacks
        if stack.status != "retired" and stack.torch_from != "base" and stack.index is None
        and stack.train.get("torch") and "torch-npu" not in stack.train
    ]  # fmt: skip
    for lane in dict.fromkeys(stack.lane for stack in rows):
        yield max((stack for stack in rows if stack.lane == lane), key=lambda stack: Version(str(stack.train["torch"])))


def _no_lock(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, before: str | None) -> str:
    raise MatrixError("not locked: the question is only what the rules say")
