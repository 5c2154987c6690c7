"""Whether a lock is what the resolver wrote for its row, and satisfies it. Offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fl import matrix_rules
from fl.errors import MatrixError
from fl.images import lock, lock_header

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack


def findings(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, text: str) -> list[str]:
    """What is wrong with a lock; empty when it belongs to the row as it is now, was not touched since, and satisfies it."""
    header = lock_header.parse(text)
    stack, pins = stack.of(flavor), matrix.locked(stack, flavor)
    if header is None:
        return ["it has no header that says whose it is", *lock.problems(text, pins, stack)]
    missing = {one.name for one in header.unlocked}
    found = [*_belongs(matrix, stack, flavor, platform, header), *_touched(header, lock.entries(text)), *_missing(stack, pins, header)]
    found += lock.problems(text, {name: version for name, version in pins.items() if name not in missing}, stack)
    absent = {name: pins[name] for name in missing if name in pins}
    return [*found, *_rules(matrix, stack, flavor, platform, {**absent, **lock.parse(text)})]


def _belongs(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, header: lock_header.Header) -> Iterator[str]:
    for name, wanted in (("stack", stack.id), ("flavor", flavor), ("platform", platform)):
        if getattr(header, name) != wanted:
            yield f"its header says {name} {getattr(header, name)}, the file is for {wanted}"
    row = lock_header.row_sha256(matrix, stack, flavor)
    if header.row != row:
        yield f"it was resolved for another row: the row is {row[:12]}, its header says {header.row[:12]}"
    if header.date != (stack.until(flavor) or "now"):
        yield f"it was resolved with packages until {header.date}, the row says {stack.until(flavor)}"


def _touched(header: lock_header.Header, entries: Mapping[str, str]) -> Iterator[str]:
    """What is not as the resolver wrote it."""
    now = lock_header.sums(entries)
    for name in sorted(header.sums.keys() | now.keys()):
        if name not in now:
            yield f"{name}: removed by hand"
        elif name not in header.sums:
            yield f"{name}: added by hand"
        elif now[name] != header.sums[name]:
            yield f"{name}: changed by hand"


def _missing(stack: Stack, pins: Mapping[str, str], header: lock_header.Header) -> Iterator[str]:
    """What the header excuses must be something that the row's own index would bring."""
    for one in header.unlocked:
        if stack.index is None:
            yield f"{one.name}: listed as unlocked, and the ordinary index has everything of this row"
        elif pins.get(one.name) != one.version:
            yield f"{one.name}: listed as unlocked in version {one.version}, the row says {pins.get(one.name, 'nothing')}"


def _rules(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, versions: Mapping[str, str]) -> Iterator[str]:
    """The recorded incompatibilities against everything that is locked, and what fl itself needs inside the image."""
    from packaging.requirements import Requirement

    from fl import wheel

    brought = matrix.packages(stack, flavor)
    if stack.torch_from == "base":
        versions = {**{name: brought[name] for name in brought.keys() - matrix.locked(stack, flavor).keys()}, **versions}
        versions = {**versions, "torch": brought["torch"]}
    for _, message, rule in matrix_rules.findings(matrix, stack, flavor, versions, platform):
        yield f"{message} [incompatibilities.{rule}]"
    for line in wheel.requirements():
        wanted = Requirement(line)
        have = versions.get(lock.normalize(wanted.name))
        if have is None or not wanted.specifier.contains(have, prereleases=True):
            yield f"{wanted.name}: fl needs {line}, the lock has {have or 'nothing'}"


def refuse_foreign(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str) -> None:
    """MatrixError for a lock that is of another row, day or image than the one that is to be made of it, or does not say whose it is."""
    file = lock.path(stack.id, flavor, platform, partial=True)
    if file is None:
        return
    header = lock_header.parse(file.read_text(encoding="utf-8"))
    own = stack.of(flavor)
    found = list(_belongs(matrix, own, flavor, platform, header)) if header else ["it has no header that says whose it is"]
    if found:
        lines = "\n".join(f"  {one}" for one in found)
        said = f"{file.name} is not the lock of {stack.id} as its row is now\n{lines}"
        raise MatrixError(said, f"fl images lock {stack.id}   makes it again")


def refuse_partial(file: Path, stack: str, *, allow: bool = False) -> tuple[lock_header.Unlocked, ...]:
    """What a lock lacks. MatrixError for one that lacks something, unless the caller allows it: what is not locked is not checked.

    Also for one that is not as the resolver wrote it: no image comes from a lock that was edited by hand.
    """
    text = file.read_text(encoding="utf-8")
    header = lock_header.parse(text)
    if header is not None and (touched := list(_touched(header, lock.entries(text)))):
        lines = "\n".join(f"  {one}" for one in touched)
        raise MatrixError(f"{file.name} is not what the resolver wrote\n{lines}", f"fl images lock {stack}   makes it again")
    missing = header.unlocked if header else ()
    if missing and not allow:
        names = "\n".join(f"  {one.name}=={one.version}: {one.reason}" for one in missing)
        raise MatrixError(
            f"{file.name} is a partial lock: an image from it would hold packages that nothing has checked\n{names}",
            f"fl images lock {stack}   where that index can be reached\nfl images build {stack} --allow-unlocked",
        )
    return missing
