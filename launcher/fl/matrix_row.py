"""A new row for another torch or runtime, proposed as a copy of its nearest sibling: what is not known of it says whose claim it was."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import yaml
from packaging.version import InvalidVersion, Version

from fl import matrix_edit
from fl.errors import MatrixError, UsageError
from fl.images import lock
from fl.matrix import Matrix, Stack, parse
from fl.matrix_check import check
from fl.matrix_form import Location, Places
from fl.matrix_update import Lock, LockChange, Unlocked

_DAY: Final = 86400
_SERVING: Final = re.compile(r"^(?P<deep> +)serve(_exclude_newer)?:.*\n((?P=deep) .*\n)*", re.M)
"""The lines of a row that are about serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A row that does not exist yet."""

    sibling: Stack
    stack: Stack
    block: str
    """Its text in the matrix."""
    text: str
    """The whole matrix with it."""
    findings: tuple[str, ...]
    """What `fl matrix check` says of it; empty when it may be written."""
    locks: tuple[LockChange, ...] = ()
    unlocked: tuple[Unlocked, ...] = ()


def nearest(matrix: Matrix, torch: str, lane: str, runtime: str | None) -> Stack:
    """The row to copy: of the lane, of the same runtime release if there is one, then of the nearest torch, the newer of two."""
    rows = [stack for stack in matrix.stacks if stack.lane == lane and stack.status != "retired" and stack.train.get("torch")]
    if not rows:
        known = sorted({stack.lane for stack in matrix.stacks})
        near = get_close_matches(lane, known, 1)
        raise UsageError(f"no row of the lane '{lane}'.{f' Did you mean {near[0]}?' if near else ''}", f"known lanes: {', '.join(known)}")
    same = [stack for stack in rows if runtime in stack.runtime.values()] or rows
    try:
        wanted = _number(torch)
    except InvalidVersion as error:
        raise UsageError(f"'{torch}' is not a version of torch", "--torch 2.15.0") from error

    def distance(stack: Stack) -> tuple[bool, int, int]:
        """Rows for a special purpose, whose id has one word more, come last."""
        number = _number(str(stack.train["torch"]))
        return bool(_word(stack)), abs(number - wanted), -number

    return min(same, key=distance)


def _word(stack: Stack) -> str:
    """`-rollout` of `cuda130-torch213-rollout`."""
    return re.sub(r"^.*-torch[0-9]+", "", stack.id)


def _number(torch: str) -> int:
    """2.14.1 → 214."""
    release = (*Version(torch).release, 0)[:2]
    return release[0] * 100 + release[1]


def propose(matrix: Matrix, sibling: Stack, torch: str, runtime: str | None, make: Lock) -> NewRow:
    """The copy, checked and locked where the indexes of this machine allow it. UsageError for what is no version or exists already."""
    try:
        release = "".join(str(part) for part in (*Version(torch).release, 0)[:2])
    except InvalidVersion as error:
        raise UsageError(f"'{torch}' is not a version of torch", "--torch 2.15.0") from error
    if runtime is not None and len(sibling.runtime) != 1:
        raise UsageError(f"{sibling.id} has no runtime that could be another one", "leave --runtime out")
    name = next(iter(sibling.runtime), sibling.lane)
    number = runtime or next(iter(sibling.runtime.values()), "")
    id_ = f"{name}{''.join(number.split('.')[:2])}-torch{release}{_word(sibling)}"
    if any(stack.id == id_ for stack in matrix.stacks):
        raise UsageError(f"the matrix has a row {id_} already", f"fl matrix update {id_}")
    place = matrix.stacks.index(sibling)
    block = _block(matrix.text, place)
    copy = _SERVING.sub("", block)  # an engine pins its own torch
    text = matrix.text.replace(block, f"{copy}\n{block}", 1)
    copied = Matrix.model_validate(parse(text)).stacks[place]
    text = matrix_edit.replace(text, _edits(copied, ("stacks", place), id_, torch, {name: runtime} if runtime else {}))
    after = Matrix.model_validate(parse(text))
    after._text = text
    stack = after.stacks[place]
    wrong = tuple(f"{finding.where}: {finding.message}" for finding in check(text))
    locks, unlocked = _locks(after, stack, make)
    return NewRow(
        sibling=sibling, stack=stack, block=_block(text, place), text=text, findings=wrong, locks=tuple(locks), unlocked=tuple(unlocked)
    )


def _edits(sibling: Stack, here: Location, id_: str, torch: str, runtime: dict[str, str]) -> dict[Location, str]:
    now = time.time()
    edits: dict[Location, str] = {(*here, "id"): id_, (*here, "status"): "edge", (*here, "confidence"): "inferred"}
    _, plus, label = str(sibling.train["torch"]).partition("+")
    edits[(*here, "train", "torch")] = torch if "+" in torch else f"{torch}{plus}{label}"
    edits |= {(*here, "runtime", name): number for name, number in runtime.items()}
    if sibling.exclude_newer is not None:
        edits[(*here, "exclude_newer")] = time.strftime("%Y-%m-%d", time.gmtime(now + _DAY))
    day = time.strftime("%Y-%m-%d", time.gmtime(now))
    for key, told in sibling.sources.items():
        fresh = f"proposed by fl matrix update, {day}; not run yet"
        edits[(*here, "sources", key)] = fresh if key == "pins" else f"not checked, taken over from {sibling.id}: {told}"
    edits |= {(*here, "notes", place): f"not checked, taken over from {sibling.id}: {told}" for place, told in enumerate(sibling.notes)}
    return edits


def _block(text: str, place: int) -> str:
    """The lines of a row, without what stands between it and the next."""
    root: Any = Places(text).root
    rows = next(value for key, value in root.value if key.value == "stacks")
    if rows.flow_style or not isinstance(rows.value[place], yaml.MappingNode) or rows.value[place].flow_style:
        raise MatrixError("the rows are not written one field a line, so none can be copied", "copy a row by hand")
    lines = text.splitlines(keepends=True)
    first, last = rows.value[place].start_mark.line, rows.value[place].end_mark.line
    block = lines[first:last]
    while block and (not block[-1].strip() or block[-1].lstrip().startswith("#")):
        block.pop()
    return "".join(block)


def _locks(after: Matrix, stack: Stack, make: Lock) -> tuple[list[LockChange], list[Unlocked]]:
    locks, unlocked = [], []
    for platform in stack.hosts.platforms:
        file = lock.path(stack.id, "train", platform, partial=True)
        before = file.read_text(encoding="utf-8") if file else None
        try:
            locks.append(LockChange(stack, "train", platform, before, make(after, stack, "train", platform, before)))
        except MatrixError as error:
            unlocked.append(Unlocked(stack.id, "train", platform, error.message))
    return locks, unlocked


def write(row: NewRow) -> list[str]:
    """Writes the row and its locks. MatrixError where the matrix would not hold together."""
    from fl.matrix_update import write_matrix

    if row.findings:
        raise MatrixError(f"{row.stack.id} breaks what is recorded:\n  " + "\n  ".join(row.findings), "another --torch or --runtime")
    return write_matrix(row.text, row.locks)
