"""Engines as the tests ask for them: with more patience than `fl`, which would take another one."""

from __future__ import annotations

import time

import pytest

from fl import engines
from fl.errors import EngineError
from fl.grants import EngineFacts

_PATIENCE = 90.0
"""Seconds. A busy machine may take several to start a command for the first time."""


def facts_or_skip(name: str) -> EngineFacts:
    """What an engine says of itself; the test is skipped where there is none."""
    end = time.monotonic() + _PATIENCE
    while isinstance(answer := engines.ask(name), EngineError):
        if not any(slow in answer.message for slow in ("timed out", "did not end in")) or time.monotonic() > end:
            pytest.skip(f"no {name}: {answer.message}")
        time.sleep(1)
    return answer
