"""An index of a ledger in the caller's cache, so that thousands of records answer in a second. Never trusted over the records:
a file whose size or times changed (also those that no program can set) is read again, and an index that is broken, or whose rows
are not as they were written, is made anew."""

from __future__ import annotations

import hashlib
import marshal
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from fl import ledger, paths
from fl.ui import clean

_VERSION: Final = 6


class Entry(NamedTuple):
    """What the audit needs of one record. A named tuple, of which twenty thousand are made in no time."""

    id: str
    time: str
    outcome: str
    lane: str
    stack: str
    model: str
    model_type: str
    config_sha256: str
    stage: str
    method: str
    device: str
    engine: str
    matches_lock: bool
    lock_sha256: str
    trainer_sha256: str
    matrix_sha256: str
    row_sha256: str
    recipe_sha256: str
    digest: str
    loss: float | None
    failure: str
    versions: str
    """`name==version` of what the environment had, separated by spaces."""
    extras: str
    """Hashes of the locks of optional packages that stood beside, separated by spaces."""


def entry_of(record: Mapping[str, Any]) -> Entry:
    """Fields of another kind than expected become empty: a hash proves that nothing was changed, not that it makes sense."""
    environment, model, method, image = (_part(record, key) for key in ("environment", "model", "method", "image"))
    losses = _part(record, "metrics").get("loss")
    last = _number(losses[-1]) if isinstance(losses, list) and losses else None
    failure = _part(record, "failure")
    versions = environment.get("versions")
    extras = environment["extras"] if isinstance(environment.get("extras"), list) else []
    return Entry(
        id=record["id"], time=record["time"], outcome=record["outcome"], lane=record["lane"], stack=_text(record.get("stack")),
        model=_text(model.get("name")) or "(no name)", model_type=_text(model.get("model_type")),
        config_sha256=_text(model.get("config_sha256")), stage=_text(method.get("stage")),
        method=_text(method.get("finetuning_type")), device=_text(_part(record, "accelerator").get("name")),
        engine=_text(environment.get("engine")), matches_lock=environment.get("matches_lock") is True,
        lock_sha256=_text(environment.get("lock_sha256")), trainer_sha256=_text(record.get("trainer_sha256")),
        matrix_sha256=_text(record.get("matrix_sha256")),
        row_sha256=_text(record.get("row_sha256")), recipe_sha256=_text(record.get("recipe_sha256")),
        digest=_text(image.get("digest") or image.get("id")), loss=last,
        failure=": ".join(_text(failure.get(key)) for key in ("type", "message")) if failure else "",
        versions=" ".join(f"{_text(k)}=={_text(v)}" for k, v in sorted(versions.items())) if isinstance(versions, dict) else "",
        extras=" ".join(sorted({_text(one.get("lock_sha256")) for one in extras if isinstance(one, dict)})),
    )  # fmt: skip


def _part(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """One line that can drive no terminal."""
    return "" if value is None else clean(" ".join(str(value)[:2000].split()))[:400]


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def entries(folder: Path, cache: Path | None = None) -> list[Entry]:
    """Every record of the ledger that holds, by the index where files are as they were."""
    return read(folder, cache)[0]


def read(folder: Path, cache: Path | None = None) -> tuple[list[Entry], int]:
    """The same, and how many files hold no record that can be believed: `fl audit verify` names them."""
    folder = folder.resolve()
    cache = cache or paths.cache_home() / "ledgers"
    file = cache / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.sqlite3"
    for _ in range(2):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            return _indexed(folder, file)
        except sqlite3.Error:
            with suppress(OSError):  # broken: made anew, unless its disk takes nothing
                file.unlink(missing_ok=True)
        except OSError:
            break  # no cache to write to
    return _read_all(folder)


def _read_all(folder: Path) -> tuple[list[Entry], int]:
    opened = [ledger.open_record(Path(entry.path)) for entry in ledger.files(folder)]
    found = {record["id"]: entry_of(record) for record in opened if isinstance(record, dict)}
    return list(found.values()), sum(isinstance(one, ledger.Fault) for one in opened)


_COLUMNS: Final = Entry._fields


def _indexed(folder: Path, file: Path) -> tuple[list[Entry], int]:
    columns = f"path, size, changed, {', '.join(_COLUMNS)}"
    with closing(sqlite3.connect(file, timeout=10)) as base, base:
        if base.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            base.execute("DROP TABLE IF EXISTS record")
            base.execute("DROP TABLE IF EXISTS whole")
            base.execute(f"PRAGMA user_version = {_VERSION}")
        base.execute(f"CREATE TABLE IF NOT EXISTS record ({columns}, PRIMARY KEY (path))")
        base.execute("CREATE TABLE IF NOT EXISTS whole (sum)")
        rows = base.execute(f"SELECT {columns} FROM record ORDER BY path").fetchall()
        if rows and base.execute("SELECT sum FROM whole").fetchall() != [(_sum(rows),)]:
            raise sqlite3.DatabaseError("rows are not as they were written")
        if _follow(base, folder, {row[0]: (row[1], row[2]) for row in rows}):
            rows = base.execute(f"SELECT {columns} FROM record ORDER BY path").fetchall()
            base.execute("DELETE FROM whole")
            base.execute("INSERT INTO whole VALUES (?)", (_sum(rows),))
    held = {row[3]: Entry._make(row[3:]) for row in rows if row[3] is not None}
    return list(held.values()), sum(row[3] is None for row in rows)


def _follow(base: sqlite3.Connection, folder: Path, known: Mapping[str, tuple[int, str]]) -> bool:
    """Brings the rows to what the files are now; whether there was anything to do."""
    present: set[str] = set()
    before = base.total_changes
    marks = ", ".join("?" * (3 + len(_COLUMNS)))
    for entry in ledger.files(folder):
        facts = entry.stat(follow_symlinks=False)
        present.add(entry.path)
        stamp = f"{facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"
        if known.get(entry.path) == (facts.st_size, stamp):
            continue
        found = ledger.open_record(Path(entry.path))
        values = entry_of(found) if isinstance(found, dict) else (None,) * len(_COLUMNS)
        base.execute(f"REPLACE INTO record VALUES ({marks})", (entry.path, facts.st_size, stamp, *values))
    base.executemany("DELETE FROM record WHERE path = ?", ((path,) for path in known.keys() - present))
    return base.total_changes > before


def _sum(rows: list[Any]) -> int:
    """Of the rows as they were written, so that none that was changed since is believed."""
    return zlib.crc32(marshal.dumps(rows, 2))  # of this form equal rows have equal bytes
