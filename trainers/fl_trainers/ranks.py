"""Several processes train as one. When one of them fails the others lose it, and end too: what the first one said is the run's word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fl_trainers.progress import rank, world_size

LOST = "LostProcess"
"""Type of the error of a process that lost another one."""
_LOSSES = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused|aborted)|broken pipe|read error|write error|socket (closed|timeout)|peer closed"
    r"|timed out waiting|remote (process|server|worker)|remoteerror|communicator was aborted|watchdog caught collective|recvvalue failed",
    re.IGNORECASE,
)
_COLLECTIVES = re.compile(r"gloo|nccl|hccl|xccl|ccl|tcpstore|socketimpl|process ?group|distbackend|distnetwork|diststore", re.IGNORECASE)


def lost(error: BaseException) -> bool:
    """Whether a collective failed because another process of this run has gone."""
    text = f"{type(error).__name__}: {error}"
    return world_size() > 1 and bool(_LOSSES.search(text)) and bool(_COLLECTIVES.search(text))


def said(text: str) -> str:
    """What a process says that lost another one, and does not know why."""
    return f"process {rank() + 1} of {world_size()} lost another one, which ended without a word ({text.partition('. ')[0]})"


def cause(events: Path) -> dict[str, Any] | None:
    """The first error that another process of this run has told, None where there is none."""
    try:
        lines = events.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # it is being written
            continue
        if event.get("event") == "error" and event.get("type") != LOST and event.get("rank", 0) != rank():
            return dict(event)
    return None
