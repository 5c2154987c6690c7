"""Run folders: what is in them, the state, the events. Everything here survives being killed in the middle."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from fl import paths
from fl.engines import processes
from fl.errors import UsageError

State = Literal["planned", "pulling", "building", "starting", "running", "saving", "finished", "failed", "stopped", "lost"]
STATES: Final[frozenset[str]] = frozenset(get_args(State))
FINAL: Final[frozenset[str]] = frozenset({"finished", "failed", "stopped", "lost"})
LOST: Final = "LostProcess"
"""Type of the error of a process that lost another one of its run."""
_TAIL: Final = 262144
"""Bytes at the end of an events file in which the last step, save and end are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """state.json. Times are seconds since 1970."""

    schema: int = 1
    run: str
    state: State = "planned"
    launcher: str = ""
    """`pid:starttime` of the fl that carries the run out."""
    engine: str | None = None
    ident: str | None = None
    """What the engine calls the run: a container's id, or `pid:starttime`."""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str | None = None


class Run:
    """A run that this process carries out or closes."""

    def __init__(self, folder: Path, state: RunState) -> None:
        self.folder = folder
        self.state = state

    def update(
        self, state: State, *, ident: str | None = None, engine: str | None = None, exit_code: int | None = None, message: str | None = None
    ) -> None:
        """Another state, on the disk before this returns. What is not given stays as it was."""
        now = time.time()
        given = {"ident": ident, "engine": engine, "exit_code": exit_code, "message": message}
        changes: dict[str, Any] = {"state": state, **{k: v for k, v in given.items() if v is not None}}
        if state == "running" and self.state.started is None:
            changes["started"] = now
        if state in FINAL:
            changes["ended"] = now
        self.state = replace(self.state, **changes)
        write_json(self.folder / "state.json", asdict(self.state))

    def note(self, state: State) -> None:
        """The same for a state that is told again and again: written only when it changed."""
        if state != self.state.state:
            self.update(state)


def create(name: str) -> Run:
    """The folder of a new run, readable by its owner alone, and the state `planned`."""
    folder = paths.runs_home() / name
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    if (folder / "state.json").exists():
        raise UsageError(f"There is a run of the name {name} already.", "the same command again takes another name")
    run = Run(folder, RunState(run=name, launcher=processes.identity(os.getpid()), created=time.time()))
    run.update("planned")
    return run


def write_json(path: Path, value: Any) -> None:
    """Complete or as it was before: written beside it, on the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_state(folder: Path) -> RunState | None:
    """The state of a run folder; None when it has none that can be read. Fields of a later fl are left out."""
    try:
        value = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        known = {f.name: value[f.name] for f in fields(RunState) if f.name in value}
        state = RunState(**known)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = all(n is None or isinstance(n, int | float) for n in (state.created, state.started, state.ended, state.exit_code))
    texts = all(t is None or isinstance(t, str) for t in (state.run, state.launcher, state.engine, state.ident, state.message))
    return state if numbers and texts and state.state in STATES else None


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events after `offset` (bytes) and where to go on. A half-written last line waits for its end, garbage is left out."""
    try:
        with path.open("rb") as file:
            if offset > os.fstat(file.fileno()).st_size:
                offset = 0  # the file was made anew
            file.seek(offset)
            content = file.read()
    except OSError:
        return [], offset
    whole = content.rfind(b"\n") + 1
    return list(_parse(content[:whole])), offset + whole


def _parse(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and isinstance(value.get("event"), str):
            yield value


def last_events(path: Path) -> dict[str, dict[str, Any]]:
    """The last event of every kind, from the end of a file of any length."""
    try:
        size = path.stat().st_size
    except OSError:
        return {}
    events, _ = read_events(path, max(0, size - _TAIL))
    return {str(event["event"]): event for event in events}


def last_error(path: Path) -> str | None:
    """What the trainer said before it gave up, with its remedy."""
    said = last_words(path)
    return None if said is None else "\n".join(filter(None, said))


def last_words(path: Path) -> tuple[str, str] | None:
    """(message, remedy) of the error that ended the run."""
    first = first_error(path)
    return None if first is None else (str(first.get("message", "")), str(first.get("remedy") or ""))


def first_error(path: Path) -> dict[str, Any] | None:
    """The first error that the trainer told, since processes fail one after the other; one that only lost another comes last."""
    try:
        size = path.stat().st_size
    except OSError:
        return None
    events, _ = read_events(path, max(0, size - _TAIL))
    return min((e for e in events if e["event"] == "error"), key=lambda e: e.get("type") == LOST, default=None)
