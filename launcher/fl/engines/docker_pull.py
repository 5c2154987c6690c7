"""Pulling an image through Docker's SDK, with megabytes and a time-out of our own: Docker itself waits for a silent registry for ever."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import requests
from docker.errors import APIError, DockerException

from fl.engines import daemon
from fl.engines.docker_errors import explain_pull
from fl.errors import FlError, ImageError

_SILENCE: Final = 120.0
"""Seconds without news after which a pull is given up."""
_LINE: Final = 2.0
"""Seconds between two lines of progress."""


class Progress:
    """What a pull has told so far. Unpacking counts as news, but not as bytes."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.status = ""

    def add(self, item: Mapping[str, Any]) -> None:
        """Takes one JSON line of the stream."""
        layer, detail = str(item.get("id", "")), item.get("progressDetail") or {}
        self.status = str(item.get("status", self.status))
        if self.status == "Downloading" and "total" in detail:
            self.done[layer], self.total[layer] = int(detail.get("current", 0)), int(detail["total"])
        elif self.status in ("Download complete", "Pull complete") and layer in self.total:
            self.done[layer] = self.total[layer]

    def line(self) -> str:
        """`312 of 2411 MB`, or what Docker is doing."""
        done, total = sum(self.done.values()), sum(self.total.values())
        if done < total:
            return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
        return (self.status or "waiting for the registry").lower()


def pull(
    address: str, reference: str, report: Callable[[str], None], check: Callable[[], None] = lambda: None, silence: float = _SILENCE
) -> None:
    """Pulls to the end. ImageError: not found, refused, unreachable, disk full, damaged, silent."""
    news: queue.Queue[Mapping[str, Any] | Exception | None] = queue.Queue()
    threading.Thread(target=_read, args=(address, reference, news), name="fl-pull", daemon=True).start()
    progress, shown, heard = Progress(), 0.0, time.monotonic()
    while True:
        check()
        try:
            item = news.get(timeout=0.2)
        except queue.Empty:
            if time.monotonic() - heard < silence:
                continue
            raise ImageError(
                f"The registry sent nothing for {silence:.0f} s while {reference} was pulled ({progress.line()}).",
                f"docker pull {reference}; what has arrived is kept",
            ) from None
        heard = time.monotonic()
        if item is None:
            return
        if isinstance(item, FlError):
            raise item
        if isinstance(item, Exception):
            raise explain_pull(_text(item), reference, "docker") from item
        if "error" in item:
            raise explain_pull(str(item["error"]), reference, "docker")
        progress.add(item)
        if time.monotonic() - shown >= _LINE:
            shown = time.monotonic()
            report(f"pulling {reference}: {progress.line()}")


def _text(error: Exception) -> str:
    return str(error.explanation or error) if isinstance(error, APIError) else str(error)


def _read(address: str, reference: str, news: queue.Queue[Mapping[str, Any] | Exception | None]) -> None:
    """The stream in a thread of its own, so that a socket that never speaks again holds up nobody."""
    from docker.utils import parse_repository_tag

    try:
        client = daemon.client(address, 600)
        name, tag = parse_repository_tag(reference)
        for item in client.pull(name, tag=tag or "latest", stream=True, decode=True):
            news.put(item)
        news.put(None)
    except (requests.RequestException, DockerException, FlError, OSError, ValueError) as error:
        news.put(error)
