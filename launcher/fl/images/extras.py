"""Locks of extras: for each optional package what it needs beside a stack's own lock, with hashes. One file a stack and platform."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths
from fl.errors import MatrixError
from fl.images import lock

if TYPE_CHECKING:
    from fl.matrix import Matrix, Stack

_TITLE: Final = "# What optional packages need beside a stack's lock. Written by `fl images lock --extras`, never by hand."
_FIELDS: Final = ("stack", "platform", "base", "resolver", "date")
_LINE: Final = re.compile(r"^# (?P<key>[a-z]+): (?P<value>.*)$", re.M)
_SUM: Final = re.compile(r"(?P<name>[a-z0-9-]+)=(?P<sum>[0-9a-f]{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtrasLock:
    """One file, read."""

    stack: str
    platform: str
    base: str
    """Hash of what the stack's own lock installs (`content_sha256`): the extras fit that and nothing else."""
    resolver: str
    date: str
    needs: Mapping[str, tuple[str, ...]]
    """Extra → the packages that are put beside the stack's own; none where the stack has them all."""
    absent: Mapping[str, str]
    """Extra → why it does not fit."""
    sums: Mapping[str, str]
    entries: Mapping[str, str]
    """Normalized name → its lines."""

    def requirements(self, extra: str) -> str:
        """The lines of one extra, for an installer."""
        return "".join(self.entries[name] for name in self.needs[extra])


def content_sha256(text: str) -> str:
    """Hash of a lock's packages, its comments left out."""
    return hashlib.sha256("".join(lock.entries(text).values()).encode()).hexdigest()


def place(stack: Stack, platform: str) -> Path:
    """Where the file of a stack stands, made or not."""
    return paths.IMAGES / stack.lane / "locks" / "extras" / f"{stack.id}.{platform.replace('/', '-')}.txt"


def read(stack: Stack, platform: str) -> ExtrasLock | None:
    """The file of a stack, or None: there is none. MatrixError for one that is no such file."""
    file = place(stack, platform)
    if not file.is_file():
        return None
    found = parse(file.read_text(encoding="utf-8"))
    if found is None:
        raise MatrixError(f"{file.name} is no lock of extras: its header is broken", f"fl images lock --extras {stack.id}")
    return found


def render(made: ExtrasLock) -> str:
    """The file's whole text."""
    import textwrap

    lines = [_TITLE, *(f"# {name}: {getattr(made, name)}" for name in _FIELDS)]
    lines += [f"# extra: {name}: {' '.join(needs)}".rstrip() for name, needs in made.needs.items()]
    lines += [f"# absent: {name}: {why}" for name, why in made.absent.items()]
    pairs = " ".join(f"{name}={value}" for name, value in sorted(made.sums.items()))
    lines += [f"# sums: {part}" for part in textwrap.wrap(pairs, 130, break_long_words=False, break_on_hyphens=False)]
    return "\n".join(lines) + "\n" + "".join(made.entries.values())


def parse(text: str) -> ExtrasLock | None:
    """A file's text; None where its header is broken."""
    told: dict[str, list[str]] = {}
    for match in _LINE.finditer(text):
        told.setdefault(match["key"], []).append(match["value"])
    entries = lock.entries(text)
    needs = {name: tuple(rest.split()) for name, rest in _named(told.get("extra", ()))}
    if any(len(told.get(name, ())) != 1 for name in _FIELDS) or not {name for names in needs.values() for name in names} <= entries.keys():
        return None
    sums = {match["name"]: match["sum"] for line in told.get("sums", ()) for match in _SUM.finditer(line)}
    one = {name: told[name][0] for name in _FIELDS}
    return ExtrasLock(**one, needs=needs, absent=dict(_named(told.get("absent", ()))), sums=sums, entries=entries)


def _named(lines: list[str] | tuple[()]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, rest = line.partition(":")
        yield name, rest.strip()


def findings(matrix: Matrix, stack: Stack, platform: str) -> list[str]:
    """What is wrong with the file of a stack, offline; a stack without a complete lock has none, and needs none."""
    base, text = lock.path(stack.id, "train", platform), _text(place(stack, platform))
    if base is None:
        return [] if text is None else ["extras of a stack whose own lock is not complete"]
    made = None if text is None else parse(text)
    if made is None or text is None:
        return ["no lock of extras" if text is None else "its header is broken"]
    locked = base.read_text(encoding="utf-8")
    return [*_belongs(stack, platform, made, locked), *_touched(made, text), *_pins(matrix, made, lock.parse(locked))]


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _belongs(stack: Stack, platform: str, made: ExtrasLock, locked: str) -> Iterator[str]:
    if (made.stack, made.platform) != (stack.id, platform):
        yield f"its header says {made.stack} on {made.platform}"
    if made.base != content_sha256(locked):
        yield "the stack's own lock is another one by now"
    if made.date != (stack.until("train") or "now"):
        yield f"it was resolved with packages until {made.date}, the row says {stack.until('train')}"
    for name in sorted(made.entries.keys() & lock.entries(locked).keys()):
        yield f"{name}: the stack has it, and the extra would hide that"


def _touched(made: ExtrasLock, text: str) -> Iterator[str]:
    from fl.images import lock_header

    now = lock_header.sums(made.entries)
    for name in sorted(made.sums.keys() | now.keys()):
        if made.sums.get(name) != now.get(name):
            yield f"{name}: changed by hand"
    yield from (f"{name}: no hash" for name, lines in made.entries.items() if "--hash=sha256:" not in lines)
    if "://" in text or "file:" in text:
        yield "it names a URL"


def _pins(matrix: Matrix, made: ExtrasLock, own: Mapping[str, str]) -> Iterator[str]:
    """Every extra of the matrix is there in its version, or told to be absent; no other one is."""
    versions = {**own, **{name: version for lines in made.entries.values() for name, version in lock.parse(lines).items()}}
    for name, extra in matrix.extras.items():
        if name in made.absent:
            continue
        if name not in made.needs:
            yield f"{name}: neither locked nor said to be absent"
            continue
        for package, version in extra.packages.items():
            if versions.get(lock.normalize(package)) != version:
                yield f"{name}: the matrix says {package} {version}, the lock {versions.get(lock.normalize(package), 'nothing')}"
    yield from (f"{name}: no extra of the matrix" for name in (*made.needs, *made.absent) if name not in matrix.extras)
