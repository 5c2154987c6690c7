"""Long work on images ends cleanly: Ctrl-C is exit 130, SIGTERM is exit 143, and what was begun is undone on the way out."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from fl.errors import Interrupted, Terminated


@contextlib.contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Turns Ctrl-C and SIGTERM into errors that unwind. `what` is a noun, e.g. `the push`."""

    def terminated(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated(f"{what} was terminated")

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"{what} was interrupted") from error
    finally:
        signal.signal(signal.SIGTERM, before)
