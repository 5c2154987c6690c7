"""fl.lock: which stack, lock and image a project runs on, lane by lane, and the evidence for it. `fl run` obeys the nearest one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from fl.errors import EvidenceError
from fl.evidence import canonical, row_sha256
from fl.lanes import LANES
from fl.ledger import once
from fl.matrix import Matrix, Stack

NAME: Final = "fl.lock"
SCHEMA: Final = 1
LARGEST: Final = 2**20
"""Bytes; one lane takes two thousand."""


REFERENCE: Final = re.compile(r"[^\s\x00-\x1f\x7f-][^\x00-\x1f\x7f]*")
"""What an image's reference may be made of: an engine is called with it."""


class PinnedImage(BaseModel):
    """An image, by its digest in a registry, or by its id where it was never pushed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reference: str
    digest: str | None = None
    id: str | None = None

    @field_validator("reference")
    @classmethod
    def _no_option(cls, reference: str) -> str:
        if not REFERENCE.fullmatch(reference):
            raise ValueError("is no reference of an image")
        return reference


class Entry(BaseModel):
    """One lane of fl.lock."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    stack: str
    row_sha256: str
    locks: dict[str, str]
    """Platform → SHA-256 of its lock."""
    extras: dict[str, str] | None = None
    """Platform → SHA-256 of the lock of its extras, where there is one. None: an earlier fl wrote the entry, which did not pin them."""
    versions: dict[str, str]
    """Distribution → version, as the row had them: what a reviewer reads."""
    image: PinnedImage | None = None
    evidence: list[str]
    """Ids of the records that the pin rests on; none with `--unproven`."""
    sha256: str = ""
    """Of the rest, so that no field can be altered alone."""

    def sealed(self) -> Entry:
        """The entry with the hash of its fields."""
        return self.model_copy(update={"sha256": self.seal()})

    def seal(self) -> str:
        """SHA-256 of every other field; of an entry without `extras` as it was before there were any."""
        return hashlib.sha256(canonical({key: value for key, value in self.shown().items() if key != "sha256"})).hexdigest()

    def shown(self) -> dict[str, Any]:
        """The fields as they stand in the file."""
        return self.model_dump(mode="json", exclude={"extras"} if self.extras is None else None)


class File(BaseModel):
    """The whole of fl.lock."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_: Literal[1]
    lanes: dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Pinned:
    """The entry that holds for a run, and the file that it stands in."""

    path: Path
    lane: str
    entry: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Today:
    """What a stack is made of now."""

    row_sha256: str
    locks: Mapping[str, str]
    extras: Mapping[str, str]
    versions: Mapping[str, str]


def today(matrix: Matrix, stack: Stack) -> Today:
    """The inputs of a stack, from the matrix and the locks that this fl has."""
    from fl.images import extras, lock

    files = {platform: lock.path(stack.id, "train", platform) for platform in stack.hosts.platforms}
    beside = {platform: extras.place(stack, platform) for platform in stack.hosts.platforms}
    return Today(
        row_sha256=row_sha256(matrix, stack), versions=matrix.packages(stack),
        locks={platform: lock.sha256(file) for platform, file in files.items() if file is not None},
        extras={platform: lock.sha256(file) for platform, file in beside.items() if file.is_file()},
    )  # fmt: skip


def make(stack: Stack, now: Today, image: PinnedImage | None, evidence: Sequence[str]) -> Entry:
    """The entry of a stack as it is today."""
    return Entry(
        stack=stack.id, row_sha256=now.row_sha256, locks=dict(now.locks), extras=dict(now.extras), versions=dict(now.versions),
        image=image, evidence=list(evidence),
    ).sealed()  # fmt: skip


def find(start: Path) -> Path | None:
    """The nearest fl.lock, from a folder upwards; also one that cannot be read: it was put there to be obeyed."""
    return next((folder / NAME for folder in (start, *start.parents) if os.path.lexists(folder / NAME)), None)


def read(path: Path) -> dict[str, Entry]:
    """Lane → entry. EvidenceError names what is wrong with a file that was not written by `fl pin`; seals are not looked at here."""
    remedy = f"git checkout {path}   or: rm {path}; fl pin STACK"
    try:
        if not path.is_file():
            raise EvidenceError(f"{path} is {'a link to nothing' if path.is_symlink() else 'no file'}", f"ls -ld {path}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise EvidenceError(f"{path} is larger than {LARGEST >> 20} MiB, which no fl.lock is", remedy)
        document = json.loads(content, object_pairs_hook=once)
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror}", remedy) from error
    except (ValueError, RecursionError) as error:
        merging = ", but has the marks of a merge that git left open" if content.find(b"<<<<<<<") >= 0 else f": {str(error)[:120]}"
        raise EvidenceError(f"{path} is no JSON{merging}", remedy) from error
    if isinstance(document, dict) and isinstance(document.get("schema"), int) and document["schema"] > SCHEMA:
        raise EvidenceError(f"{path} has schema {document['schema']}, this fl reads up to {SCHEMA}", "a newer fl wrote it: upgrade fl")
    if isinstance(document, dict):
        schema = document.pop("schema", None)
        document["schema_"] = schema if type(schema) is int else str(schema)
    try:
        lanes = File.model_validate(document).lanes
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join("schema" if part == "schema_" else str(part) for part in first["loc"]) or "the whole"
        raise EvidenceError(f"{path}: {where}: {first['msg']}", remedy) from error
    if unknown := [lane for lane in lanes if lane not in LANES]:
        raise EvidenceError(f"{path}: lanes.{unknown[0]}: there is no such lane; there are {', '.join(LANES)}", remedy)
    if any(entry.image for entry in lanes.values()) and _left_by_a_stranger(path):
        raise EvidenceError(
            f"{path} names an image to run, belongs to another user, and lies in a folder that everybody can write to",
            f"look at it; if it is meant for you: chmod o-w {path.parent}",
        )
    return lanes


def _left_by_a_stranger(path: Path) -> bool:
    """As a file in /tmp, above a project that somebody tries out there."""
    try:
        return bool(path.parent.stat().st_mode & stat.S_IWOTH) and path.stat().st_uid not in (0, os.geteuid())
    except OSError:
        return True


def for_lane(start: Path, lane: str) -> Pinned | None:
    """What is pinned for a lane at a folder. None: no fl.lock, or it says nothing of this lane."""
    path = find(start)
    if path is None:
        return None
    entry = read(path).get(lane)
    return None if entry is None else Pinned(path, lane, entry)


def write(path: Path, lane: str, entry: Entry) -> None:
    """Puts a lane's entry into the file, the others as they were; the file is whole or as before."""
    lanes = {**(read(path) if os.path.lexists(path) else {}), lane: entry}
    path = path.resolve()  # a link to a file that projects share stays one
    content = {"schema": SCHEMA, "lanes": {name: lanes[name].shown() for name in sorted(lanes)}}
    part: str | None = None
    try:
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".fl-lock-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=False)
            file.write("\n")
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except OSError as error:
        if part is not None:
            Path(part).unlink(missing_ok=True)
        raise EvidenceError(f"{path} cannot be written: {error.strerror}; it is as it was", f"ls -ld {path.parent}") from error


def changes(lane: str, entry: Entry, matrix: Matrix) -> list[str]:
    """What is not as it was pinned: seal, stack, lane, row, versions, locks, and those of extras where they were pinned."""
    found = [] if entry.seal() == entry.sha256 else ["its own hash: a field of it was altered after `fl pin` wrote it"]
    row = next((stack for stack in matrix.stacks if stack.id == entry.stack), None)
    if row is None:
        return [*found, f"the stack: the matrix has no row {entry.stack} any more"]
    if row.lane != lane:
        found.append(f"the lane: {entry.stack} is a stack of the {row.lane} lane")
    now = today(matrix, row)
    names = sorted(entry.versions.keys() | now.versions.keys())
    other = [name for name in names if entry.versions.get(name) != now.versions.get(name)]
    found += [f"{n}: pinned {entry.versions.get(n) or 'nothing'}, the row has {now.versions.get(n) or 'nothing'}" for n in other]
    if entry.row_sha256 != now.row_sha256 and not other:
        found.append(f"the row {entry.stack}: its runtime, base, features or indexes were edited")
    found += _others("lock", entry.locks, now.locks)
    return found if entry.extras is None else [*found, *_others("lock of extras", entry.extras, now.extras)]


def _others(name: str, pinned: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"the {name} for {platform}: pinned {_short(pinned.get(platform))}, this fl has {_short(now.get(platform))}"
        for platform in sorted(pinned.keys() | now.keys())
        if pinned.get(platform) != now.get(platform)
    ]


def _short(digest: str | None) -> str:
    return (digest or "none").removeprefix("sha256:")[:12]


def check(pinned: Pinned, matrix: Matrix, stack: str | None, image: str | None) -> None:
    """EvidenceError where the pinned entry does not hold today, or where a run asks for something else."""
    entry = pinned.entry
    found = changes(pinned.lane, entry, matrix)
    if stack not in (None, entry.stack):
        found.append(f"the stack: pinned {entry.stack}, this run asks for {stack}")
    if image is not None and entry.image is not None and image != entry.image.reference:
        found.append(f"the image: pinned {entry.image.reference}, this run asks for {image}")
    refuse(pinned, found, stack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a run would use."""

    engine: str
    platform: str
    lock_sha256: str | None
    differences: Sequence[str] = ()
    """Packages of an interpreter that are not the lock's."""
    reference: str | None = None
    digest: str | None = None
    image_id: str | None = None
    local: bool = False
    """The image is here, so its digest or id is known."""


def check_used(pinned: Pinned, used: Used) -> None:
    """EvidenceError where engine, environment or image turned out to be another than the pinned one."""
    entry, found = pinned.entry, []
    if used.differences:
        found.append(f"the interpreter's packages: {', '.join(used.differences[:6])}")
    elif used.lock_sha256 != entry.locks.get(used.platform):
        found.append(f"the lock: pinned {_short(entry.locks.get(used.platform))}, the {used.engine} engine has {_short(used.lock_sha256)}")
    if entry.image is not None and used.local:
        found += moved(entry.image, str(used.reference), used.digest, used.image_id)
    refuse(pinned, found)


def moved(image: PinnedImage, reference: str, digest: str | None, ident: str | None) -> list[str]:
    """Whether what a reference names today is another image than the pinned one."""
    wanted, has = (image.digest, digest) if image.digest else (image.id, ident)
    if wanted is None or wanted == has:
        return []
    return [f"the image {reference}: pinned {_short(wanted)}, its tag is now {_short(has)}"]


def said(start: Path, pinned: Pinned | None, lane: str, *, extras: bool) -> tuple[str, ...]:
    """What a run that uses `extras`, or does not, is told of a pin that does not cover all of it."""
    if pinned is None:
        path = find(start)
        return () if path is None else (f"{path} pins nothing for the {lane} lane: `fl pin STACK`",)
    if extras and pinned.entry.extras is None:
        return (f"{pinned.path} does not pin the locks of extras, which this recipe needs: `fl pin {pinned.entry.stack}`",)
    return ()


def refuse(pinned: Pinned, found: Sequence[str], wanted: str | None = None) -> None:
    """The error of a pin that does not hold, with the two ways out. `wanted`: the stack that a run asks for."""
    if found:
        lines = "\n".join(f"  {one}" for one in found)
        raise EvidenceError(
            f"{pinned.path} pins {pinned.entry.stack} for the {pinned.lane} lane, which does not hold:\n{lines}",
            f"use what was pinned: the fl, lock and image of that time (git log {pinned.path})\n"
            f"or pin what is there now: fl pin {wanted or pinned.entry.stack}",
        )


def as_json(path: Path, lanes: Mapping[str, Entry], problems: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The document of `fl pin --check --json`."""
    rows = {lane: {**entry.shown(), "problems": list(problems.get(lane, ()))} for lane, entry in lanes.items()}
    return {"schema": 1, "file": str(path), "holds": not any(problems.values()), "lanes": rows}
