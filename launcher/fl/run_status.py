"""What has become of runs, also of those whose launcher died: state.json says what was, the engine and the events say what is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl import engines, paths, runs
from fl.engines import UNKNOWN_EXIT, Ended, Started, processes
from fl.errors import EngineError, UsageError
from fl.runs import FINAL, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run as it is now. `state` is one of design §4.6, or `broken`: a folder that cannot be read."""

    name: str
    folder: Path
    state: str
    created: float
    engine: str | None = None
    ident: str | None = None
    launcher: int | None = None
    """Pid of the fl that carries it out; None when that has gone."""
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    message: str | None = None
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    saved: str | None = None
    """The last checkpoint or result that was written."""

    @property
    def over(self) -> bool:
        """True when nothing of it runs any more."""
        return self.state in FINAL or self.state == "broken"

    def to_json(self) -> dict[str, Any]:
        """One entry of `fl ps --json`."""
        return {
            "run": self.name, "state": self.state, "engine": self.engine, "created": _iso(self.created), "started": _iso(self.started),
            "ended": _iso(self.ended), "exit_code": self.exit_code, "message": self.message, "step": self.step,
            "max_steps": self.max_steps, "loss": self.loss, "saved": self.saved, "folder": str(self.folder),
        }  # fmt: skip


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Finder:
    """Looks at runs; an engine that does not answer is asked once and not for every run again."""

    def __init__(self) -> None:
        self._silent: dict[str, EngineError] = {}

    def status(self, folder: Path) -> RunStatus:
        """One run folder, whatever is in it."""
        state = runs.read_state(folder)
        if state is None:
            # A detached launcher makes the folder a moment before the state; an old one without is broken.
            message = "its state.json is missing or cannot be read"
            return RunStatus(name=folder.name, folder=folder, state="broken", created=_mtime(folder), message=message)
        last = runs.last_events(folder / "events.jsonl")
        pid = processes.alive(state.launcher)
        status = _with_progress(
            RunStatus(
                name=folder.name,
                folder=folder,
                state=state.state,
                created=state.created,
                engine=state.engine,
                ident=state.ident,
                launcher=pid,
                started=state.started,
                ended=state.ended,
                exit_code=state.exit_code,
                message=state.message,
            ),
            last,
        )
        if state.state in FINAL or pid is not None:
            return status
        # The launcher may have closed the run between the two looks.
        again = runs.read_state(folder) or state
        if again.state in FINAL:
            return replace(status, state=again.state, ended=again.ended, exit_code=again.exit_code, message=again.message)
        return self._orphan(status, state, last)

    def _orphan(self, status: RunStatus, state: RunState, last: Mapping[str, Mapping[str, Any]]) -> RunStatus:
        try:
            started = self.adopt(status)
            ended = None if started is None else started.poll()
        except EngineError as error:
            return replace(status, message=f"its launcher has gone and {status.engine} does not answer: {error.message}")
        if started is not None and ended is None:
            return replace(status, state="running", ident=started.ident, message="its launcher has gone; `fl stop` ends it")
        now, code, message = outcome(ended, last, bool(state.ident))
        return replace(status, state=now, exit_code=code, message=message)

    def adopt(self, status: RunStatus) -> Started | None:
        """What still exists of a run in its engine: a process, or a container that may have ended."""
        name = status.engine or _planned_engine(status.folder)
        if name not in engines.ENGINES:
            return None
        if name in self._silent:
            raise self._silent[name]
        try:
            engine = engines.get(name)
            if status.ident:
                return engine.adopt(status.ident)
            # It died between the start and the note of it: containers carry the run's name, processes its mark.
            left = f"fl-{status.name}" if name != "host" else next(map(processes.identity, sorted(processes.marked(status.name))), "")
            return engine.adopt(left) if left else None
        except EngineError as error:
            self._silent[name] = error
            raise


def outcome(ended: Ended | None, last: Mapping[str, Mapping[str, Any]], began: bool) -> tuple[str, int | None, str]:
    """State, exit code and message of a run that nobody saw end: its exit code where the engine kept it, else its last words. Pure."""
    code = None if ended is None or ended.exit_code == UNKNOWN_EXIT else ended.exit_code
    error = last.get("error")
    if code is None:
        code = told_exit(last)
    if code is None:
        return "lost", None, "its launcher died, and the run with it" if began else "its launcher died before the training began"
    if code == 0:
        return "finished", 0, "finished after its launcher had gone"
    said = str(error["message"]) if error is not None and error.get("message") else None
    said = said or (str(last["end"]["message"]) if last.get("end", {}).get("message") else None)
    reason = said or (ended.reason if ended is not None else None) or f"exit code {code}"
    return ("stopped" if code in (130, 143) else "failed"), code, f"{reason} (its launcher had gone)"


def told_exit(last: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The exit code that the trainer announced in its last words. Pure."""
    for kind in ("end", "error"):
        if isinstance(code := last.get(kind, {}).get("exit"), int):
            return code
    return 0 if "end" in last and "error" not in last else None


def _with_progress(status: RunStatus, last: Mapping[str, Mapping[str, Any]]) -> RunStatus:
    step, save = last.get("step", {}), last.get("save", {})
    numbers = {k: v for k in ("step", "max_steps") if isinstance(v := step.get(k), int)}
    loss, path = step.get("loss"), save.get("path")
    return replace(
        status,
        step=numbers.get("step"),
        max_steps=numbers.get("max_steps"),
        loss=float(loss) if isinstance(loss, int | float) else None,
        saved=str(path) if path else None,
    )


def _planned_engine(folder: Path) -> str:
    import json

    try:
        return str(json.loads((folder / "plan.json").read_text(encoding="utf-8"))["engine"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def folders() -> list[Path]:
    """All run folders."""
    try:
        return [p for p in paths.runs_home().iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:
        return []


def list_runs() -> list[RunStatus]:
    """All runs, the newest first."""
    finder = Finder()
    return sorted((finder.status(folder) for folder in folders()), key=lambda s: (s.created, s.name), reverse=True)


def find(text: str = "last") -> RunStatus:
    """A run by name, by the beginning of its name, or `last`. UsageError with the nearest name."""
    known = {folder.name: folder for folder in folders()}
    if text in known:
        return Finder().status(known[text])
    if not known:
        raise UsageError("There are no runs yet.", "fl run quickstart")
    newest = sorted(known, key=lambda name: (_created(known[name]), name), reverse=True)
    if text == "last":
        return Finder().status(known[newest[0]])
    fits = [name for name in newest if name.startswith(text)]
    if len(fits) == 1:
        return Finder().status(known[fits[0]])
    if fits:
        raise UsageError(f"{len(fits)} runs begin with {text!r}: {', '.join(fits[:5])}{', …' if len(fits) > 5 else ''}", fits[0])
    from difflib import get_close_matches

    near = get_close_matches(text, newest, 1, 0.4) or newest
    raise UsageError(f"There is no run {text!r}; the nearest is {near[0]}.", "fl ps -a")


def _created(folder: Path) -> float:
    state = runs.read_state(folder)
    return _mtime(folder) if state is None else state.created
