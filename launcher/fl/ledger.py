"""The ledger: a folder of evidence records, one file each, to which several machines append without conflict (design §4.8)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fl import paths, settings
from fl.errors import EvidenceError
from fl.evidence import canonical

SCHEMA: Final = 1
LARGEST: Final = 4 * 2**20
"""Bytes of a record; the largest that a run of 100,000 logged steps writes is half of it."""
LONGEST: Final = 200
"""Characters of a name inside a record."""
_LANE: Final = re.compile(r"[a-z0-9]{1,32}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one file."""

    path: Path
    message: str


def default(cwd: Path | None = None) -> Path:
    """`./evidence` where there is one, else the ledger of the settings, else the read-only one that came with fl."""
    here = (cwd or Path.cwd()) / "evidence"
    if here.is_dir():
        return here
    if (configured := settings.load().ledger) is not None:
        return Path(configured).expanduser()
    return paths.EVIDENCE


def target(cwd: Path | None = None) -> Path:
    """Where new records go: the ledger that is read here, or `./evidence` where that is the one that came with fl."""
    found = default(cwd)
    return (cwd or Path.cwd()) / "evidence" if found == paths.EVIDENCE else found


def place(ledger: Path, record: Mapping[str, Any]) -> Path:
    """`LEDGER/LANE/YYYY-MM/ID.json`."""
    return ledger / str(record["lane"]) / str(record["time"])[:7] / f"{record['id']}.json"


def files(ledger: Path) -> Iterator[os.DirEntry[str]]:
    """Every record's file, in the order of names; folders of other things (`signatures`) are left out."""
    for lane in _folders(ledger):
        for month in _folders(lane.path):
            with os.scandir(month.path) as entries:
                yield from sorted((entry for entry in entries if entry.name.endswith(".json")), key=lambda entry: entry.name)


def strays(ledger: Path) -> Iterator[Fault]:
    """What lies in a ledger where no record is looked for: a record there would count for nothing, and nobody would know."""
    for folder, names, found in os.walk(ledger):
        depth = len(Path(folder).relative_to(ledger).parts)
        for name in sorted(names):
            if Path(folder, name).is_symlink():
                yield Fault(Path(folder, name), "is a link to a folder, which is not followed")
        names[:] = sorted(name for name in names if not name.startswith(".") and (depth or name != "signatures"))
        for name in sorted(found):
            if name.endswith(".json") and depth != 2:
                yield Fault(Path(folder, name), "lies outside LANE/YYYY-MM/ and counts for nothing; `fl audit add` files it")


def _folders(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.is_dir(follow_symlinks=False) and e.name != "signatures"), key=lambda e: e.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EvidenceError(f"the ledger {folder} cannot be read: {error.strerror}", "fl audit --ledger DIR") from error


def open_record(path: Path) -> dict[str, Any] | Fault:
    """The record of a file, its id recomputed; or what is wrong with it."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return Fault(path, "is no file, but a pipe, a device or a folder")
            content = file.read(LARGEST + 1)
    except OSError as error:
        return Fault(path, f"cannot be read: {error.strerror}")
    if len(content) > LARGEST:
        return Fault(path, f"is larger than {LARGEST >> 20} MiB, which no record is")
    try:
        record = json.loads(content, parse_constant=_no_number, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        return Fault(path, f"is truncated or no JSON: {str(error)[:80]}")
    problem = fault_of(record)
    return Fault(path, problem) if problem else dict(record)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose keys stand there once: of two, the hash would cover the last and a reader might see the first."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one mapping")
    return made


def fault_of(record: Any) -> str | None:
    """What is wrong with a record, or None: schema, form, id."""
    if not isinstance(record, dict):
        return "is no record: wanted a mapping"
    if isinstance(record.get("schema"), int) and record["schema"] > SCHEMA:
        return f"has schema {record['schema']}, this fl reads up to {SCHEMA}: a newer fl wrote it"
    if record.get("schema") != SCHEMA:
        return f"has schema {record.get('schema')!r}, wanted {SCHEMA}"
    texts, parts = ("id", "time", "outcome", "lane"), ("model", "environment", "metrics")
    for key in (*texts, *parts):
        if not isinstance(record.get(key), str if key in texts else dict):
            return f"has no {key}"
    if record["outcome"] not in ("passed", "failed", "refused"):
        return f"has outcome {record['outcome']!r}"
    name = str(record["model"].get("name"))
    if not _LANE.fullmatch(record["lane"]) or record["lane"] == "signatures" or len(name) > LONGEST:
        return "has a lane or a model name that no run writes"
    if not _is_time(record["time"]):
        return "has a time that no run writes"
    try:
        found = hashlib.sha256(canonical(record)).hexdigest()
    except UnicodeEncodeError:
        return "holds text that is no Unicode"
    except (ValueError, RecursionError):
        return "holds numbers that are none"
    return None if found == record["id"] else "was changed: its content does not have the id that it says"


def _is_time(text: str) -> bool:
    try:
        return _TIME.fullmatch(text) is not None and bool(datetime.fromisoformat(text[:-1]))
    except ValueError:
        return False


def read(ledger: Path) -> Iterator[dict[str, Any]]:
    """The records whose id holds; faults are for `verify` to tell."""
    for entry in files(ledger):
        found = open_record(Path(entry.path))
        if isinstance(found, dict):
            yield found


def verify(ledger: Path) -> tuple[int, list[Fault]]:
    """How many records hold, and what is wrong with the others: changed, truncated, twice, or in a file of another name."""
    good = 0
    faults: list[Fault] = []
    seen: dict[str, Path] = {}
    for entry in files(ledger):
        path = Path(entry.path)
        found = open_record(path)
        if isinstance(found, Fault):
            faults.append(found)
        elif found["id"] in seen:
            faults.append(Fault(path, f"is a second copy of {seen[found['id']]}"))
        elif path != place(ledger, found):
            faults.append(Fault(path, f"holds the record {found['id'][:12]}…, which has another name or folder"))
        else:
            seen[found["id"]] = path
            good += 1
    faults += strays(ledger)
    return good, faults


def add(ledger: Path, record: Mapping[str, Any]) -> Path:
    """Writes a record: the file is complete or absent, and never replaced. EvidenceError for a broken record or a disk that takes none."""
    if (problem := fault_of(record)) is not None:
        raise EvidenceError(f"the record {problem}", "records are made by runs; add the run: `fl audit add RUN`")
    path = place(ledger, record)
    if path.exists():
        there = open_record(path)
        if isinstance(there, Fault):
            raise EvidenceError(f"{path} {there.message}; the record was not written over it", f"fl audit verify\nrm {path}")
        return path
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, text.encode())
    except OSError as error:
        mend = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "a ledger that can be written"
        raise EvidenceError(
            f"the ledger {ledger} takes no record: {error.strerror}; what is in it is whole, and nothing of it was changed",
            f"{mend}, then the same again: records that are there stay\nanother ledger: fl audit --ledger DIR …",
        ) from error
    return path


def write(path: Path, content: bytes) -> None:
    """A file that is complete or absent, also after a power cut. OSError leaves nothing."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)
