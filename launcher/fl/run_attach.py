"""A run on the screen, by whoever started it: the events so far and those that come, until it ends. Watching changes nothing."""

from __future__ import annotations

import time
from typing import Final

from fl import runs
from fl.progress import View
from fl.run_status import Finder, RunStatus

_PACE: Final = 0.2
_LOOK: Final = 1.0
_LAST: Final = ("model", "data", "step")
"""What of the past is shown before it goes on."""


def watch(status: RunStatus, view: View) -> RunStatus:
    """Shows a run until it is over; its status then. KeyboardInterrupt passes through: the run goes on."""
    events = status.folder / "events.jsonl"
    past, offset = runs.read_events(events)
    for kind in _LAST:
        for event in [e for e in past if e["event"] == kind][-1:]:
            view.event(event)
    finder, looked = Finder(), time.monotonic()
    while not status.over:
        time.sleep(_PACE)
        if time.monotonic() - looked >= _LOOK:
            looked = time.monotonic()
            status = finder.status(status.folder)
        # read after the look: what was written before the end is shown before it is told
        news, offset = runs.read_events(events, offset)
        for event in news:
            view.event(event)
    return status
