"""The comment lines at the head of a lock: for which image it is, from which row, until when the index was read, what is missing. Pure."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_TITLE: Final = "# Every Python package of an image, with its hashes. Written by `fl images lock`, never by hand."
_FIELDS: Final = ("stack", "flavor", "platform", "row", "resolver", "date")
_LINE: Final = re.compile(r"^# (?P<key>[a-z]+): (?P<value>.*)$", re.M)
_UNLOCKED: Final = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s:]+): (?P<reason>.+)")
_SUM: Final = re.compile(r"(?P<name>[a-z0-9-]+)=(?P<sum>[0-9a-f]{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlocked:
    """A package of the row that the lock does not hold, and why."""

    name: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a lock says of itself."""

    stack: str
    flavor: str
    platform: str
    row: str
    """Hash of the row that it was resolved for (`row_sha256`)."""
    resolver: str
    """Name and version."""
    date: str
    """The row's day (`Stack.until`): packages that were uploaded later do not count. `now` where the row names no day."""
    unlocked: tuple[Unlocked, ...] = ()
    sums: Mapping[str, str]
    """Normalized name → first digits of the hash of its lines, as the resolver wrote them."""

    @property
    def partial(self) -> bool:
        """Whether something is missing: such a lock builds nothing by itself."""
        return bool(self.unlocked)


def row_sha256(matrix: Matrix, stack: Stack, flavor: Flavor) -> str:
    """Hash of what a row puts into an image of that flavor; for training it is the one that evidence carries."""
    from fl import evidence

    if flavor == "train":
        return evidence.row_sha256(matrix, stack)
    row = stack.of(flavor).model_dump(mode="json", include={"lane", "runtime", "python", "base", "torch_from", "index"})
    return hashlib.sha256(evidence.canonical({**row, "packages": matrix.packages(stack, flavor)})).hexdigest()


def sums(entries: Mapping[str, str]) -> dict[str, str]:
    """A short hash of each package's lines: so that a change by hand is found, and what was changed is named."""
    return {name: hashlib.sha256(lines.encode()).hexdigest()[:8] for name, lines in sorted(entries.items())}


def render(header: Header) -> str:
    """The comment lines, ending with a newline."""
    lines = [_TITLE, *(f"# {name}: {getattr(header, name)}" for name in _FIELDS)]
    lines.append(f"# state: {'partial' if header.partial else 'complete'}")
    lines += [f"# unlocked: {one.name}=={one.version}: {one.reason}" for one in header.unlocked]
    pairs = " ".join(f"{name}={value}" for name, value in sorted(header.sums.items()))
    lines += [f"# sums: {part}" for part in textwrap.wrap(pairs, 130, break_long_words=False, break_on_hyphens=False)]
    return "\n".join(lines) + "\n"


def parse(text: str) -> Header | None:
    """The header of a lock, or None: it has none, or a field is missing."""
    told: dict[str, list[str]] = {}
    for match in _LINE.finditer(text):
        told.setdefault(match["key"], []).append(match["value"])
    if any(len(told.get(name, [])) != 1 for name in _FIELDS):
        return None
    unlocked = tuple(
        Unlocked(name=found["name"], version=found["version"], reason=found["reason"])
        for line in told.get("unlocked", [])
        if (found := _UNLOCKED.fullmatch(line))
    )
    pairs = (match for line in told.get("sums", []) for match in _SUM.finditer(line))
    return Header(
        stack=told["stack"][0], flavor=told["flavor"][0], platform=told["platform"][0], row=told["row"][0],
        resolver=told["resolver"][0], date=told["date"][0], unlocked=unlocked, sums={match["name"]: match["sum"] for match in pairs},
    )  # fmt: skip
