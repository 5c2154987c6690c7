"""Events: what the launcher follows while the trainer runs, one JSON object a line."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

log = logging.getLogger("fl_trainers")


def rank() -> int:
    """This process among all of the run; 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_log() -> None:
    """Log lines go to stdout: rank 0 tells everything, the others only what went wrong."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(message)s" if rank() == 0 else f"%(asctime)s rank {rank()}: %(message)s", "%H:%M:%S")
    )
    log.addHandler(handler)
    log.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    log.propagate = False


def finite(value: Any) -> Any:
    """Strict JSON knows no NaN and no Infinity: they are written as text, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value


class Events:
    """Appends to the events file; each line is written by one call, so that a reader never sees half of one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.writes = rank() == 0
        self.counts: dict[str, int] = {}

    def emit(self, event: str, *, every_rank: bool = False, **fields: Any) -> None:
        """Rank 0 speaks for all; errors are told by whichever rank has them."""
        self.counts[event] = self.counts.get(event, 0) + 1
        if not (self.writes or every_rank):
            return
        line: dict[str, Any] = {"time": round(time.time(), 3), "event": event, **finite(fields)}
        if rank():
            line["rank"] = rank()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def warn(self, code: str, message: str, **fields: Any) -> None:
        """Something that is not as the user would expect; also a log line."""
        self.emit("warning", code=code, message=message, **fields)
        log.warning("warning: %s", message)

    def error(self, kind: str, message: str, exit_code: int, remedy: str = "") -> None:
        """Why the run ends; also a log line."""
        self.emit("error", every_rank=True, type=kind, message=message, remedy=remedy, exit=exit_code)
        log.error("error: %s%s", message, f"\n  {remedy}" if remedy else "")
