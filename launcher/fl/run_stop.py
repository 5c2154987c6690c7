"""Stopping a run from another process: through its launcher while that lives, else through the engine."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

from fl import runs, ui
from fl.engines import UNKNOWN_EXIT, Ended, Started, processes
from fl.errors import EngineError
from fl.plan import GRACE
from fl.run_status import Finder, RunStatus, told_exit

_SPARE = 30.0
"""Seconds beyond the grace period in which a launcher writes its last files."""


def stop(status: RunStatus, now: bool) -> RunStatus:
    """Stops it and waits; the status at the end. EngineError when it does not end."""
    finder = Finder()
    if status.launcher is not None:
        return _by_launcher(finder, status, status.launcher, now)
    started = finder.adopt(status)
    if started is None:
        return finder.status(status.folder)
    return _by_engine(finder, status, started, now)


def _by_launcher(finder: Finder, status: RunStatus, launcher: int, now: bool) -> RunStatus:
    processes.signal_process(launcher, signal.SIGTERM)
    if now:
        # The launcher has heard first, so that it closes the run as stopped and not as crashed.
        time.sleep(0.3)
        started = finder.adopt(finder.status(status.folder))
        if started is not None:
            started.kill()
    deadline = time.monotonic() + (0 if now else GRACE) + _SPARE
    while time.monotonic() < deadline:
        status = finder.status(status.folder)
        if status.over:
            return status
        if status.launcher is None:
            return stop(status, now)
        time.sleep(0.2)
    raise EngineError(
        f"{status.name} was asked to stop and has not ended: it is {status.state}.",
        f"fl stop --now {status.name}\nkill -9 {launcher}, then fl stop {status.name}",
    )


def _by_engine(finder: Finder, status: RunStatus, started: Started, now: bool) -> RunStatus:
    log = status.folder / "log.txt"
    started.catch_up(log)
    if now:
        started.kill()
    else:
        started.stop(GRACE)
    deadline = time.monotonic() + GRACE + _SPARE
    while (ended := started.poll()) is None:
        if time.monotonic() > deadline:
            raise EngineError(f"{status.name} does not end, not even when it is killed.", f"{status.engine} inspect {started.ident}")
        time.sleep(0.2)
    started.catch_up(log)
    close(status, ended)
    started.remove()
    return finder.status(status.folder)


def close(status: RunStatus, ended: Ended) -> None:
    """Writes the end that the launcher could not write. A run that finished just before it was stopped has finished."""
    state = runs.read_state(status.folder)
    (status.folder / "secrets.json").unlink(missing_ok=True)
    if state is not None:
        told = told_exit(runs.last_events(status.folder / "events.jsonl"))
        code = told if ended.exit_code == UNKNOWN_EXIT else ended.exit_code
        message = "finished after its launcher had gone" if code == 0 else "stopped after its launcher had gone"
        runs.Run(status.folder, state).update("finished" if code == 0 else "stopped", exit_code=code, message=message)
        _write_evidence(status.folder, code, message)


def clean(status: RunStatus) -> None:
    """Removes the container of a run that ended after its launcher had gone, and writes that end down."""
    state = runs.read_state(status.folder)
    if state is None or state.state in runs.FINAL:
        return
    try:
        started = Finder().adopt(status)
        if started is not None and started.poll() is not None:
            started.catch_up(status.folder / "log.txt")
            started.remove()
    except EngineError as error:
        ui.warning(error.message)
        return
    (status.folder / "secrets.json").unlink(missing_ok=True)
    final = replace(state, state="lost") if status.state not in runs.FINAL else state
    runs.Run(status.folder, final).update(status.state, exit_code=status.exit_code, message=status.message)  # type: ignore[arg-type]
    _write_evidence(status.folder, status.exit_code, status.message or status.state)


def _write_evidence(folder: Path, code: int | None, message: str) -> None:
    """The evidence that the launcher would have written."""
    from fl import evidence

    failure = None if code == 0 else {"type": "Orphaned", "message": message}
    if not (folder / "evidence.json").exists():
        runs.write_json(folder / "evidence.json", evidence.of_run(folder, "passed" if code == 0 else "failed", failure))
