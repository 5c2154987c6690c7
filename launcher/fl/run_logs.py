"""The log of a run on the screen, also while it grows and after its launcher died."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fl import ui
from fl.errors import EngineError
from fl.run_status import Finder, RunStatus

_PACE = 0.2
_LOOK = 1.0


def show(status: RunStatus, follow: bool) -> None:
    """Prints log.txt; with `follow` until the run is over. A closed pipe (`fl logs | head`) ends it quietly."""
    try:
        _show(status, follow)
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end; there is nobody to read it.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115, PTH123
    except KeyboardInterrupt:
        return


def _show(status: RunStatus, follow: bool) -> None:
    log, offset = status.folder / "log.txt", 0
    finder, looked = Finder(), 0.0
    _fetch(finder, status)
    while True:
        # Looked at before reading: what was written before the end is read after it was seen.
        if follow and time.monotonic() - looked >= _LOOK:
            looked = time.monotonic()
            status = finder.status(status.folder)
            _fetch(finder, status)
        offset = _print_from(log, offset, last=not follow or status.over)
        if not follow or status.over:
            break
        time.sleep(_PACE)
    if offset == 0:
        ui.say(f"{status.name} wrote nothing" + (f": {status.message}" if status.message else ""))


def _fetch(finder: Finder, status: RunStatus) -> None:
    """Nobody copies a container's output once its launcher has gone: done here."""
    if status.launcher is None and status.engine not in (None, "host") and status.ident:
        try:
            started = finder.adopt(status)
            if started is not None:
                started.catch_up(status.folder / "log.txt")
        except EngineError as error:
            ui.warning(f"what {status.name} wrote after its launcher had gone cannot be fetched: {error.message}")


def _print_from(log: Path, offset: int, last: bool) -> int:
    """Prints whole lines after `offset`, the unfinished one only when nothing more will come; returns where to go on."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except OSError:
        return offset
    end = len(content) if last else content.rfind(b"\n") + 1
    text = content[:end].decode("utf-8", errors="replace")
    for line in text.removesuffix("\n").split("\n") if text else ():
        ui.out(ui.clean(line.rstrip("\r").rpartition("\r")[2]))
    return offset + end
