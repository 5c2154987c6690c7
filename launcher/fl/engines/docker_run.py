"""One container through Docker's SDK. The daemon may go away and come back while it runs; nothing here waits for it without end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from fl.engines import Ended, daemon
from fl.engines.container_state import read_state
from fl.errors import EngineError

_ASK: Final = 5
"""Seconds for one answer."""
_PATIENCE: Final = 60.0
"""Seconds without an answer after which the daemon counts as gone: one that is restarted comes back in less."""
_DRAIN: Final = 30.0
"""Seconds that the rest of the log may take after the end."""
_PACE: Final = 0.25
"""Seconds between two questions, however often `poll` is called."""
_LOST = (requests.RequestException, DockerException, OSError, ValueError)


class Container:
    """A started container."""

    def __init__(self, address: str, ident: str) -> None:
        self.ident = ident
        self._address = address
        self._client: docker.APIClient | None = None
        self._lock = threading.Lock()
        self._ended: Ended | None = None
        self._asked = 0.0
        self._answered = time.monotonic()
        self._timer: threading.Timer | None = None
        self._follower: threading.Thread | None = None
        self._done = threading.Event()

    def _api(self) -> docker.APIClient:
        """Connected at the first question, not before: agreeing on a version is a question too."""
        if self._client is None:
            self._client = daemon.client(self._address, _ASK)
        return self._client

    def poll(self) -> Ended | None:
        """None while it runs, and while a daemon that does not answer may still come back."""
        now = time.monotonic()
        if self._ended is not None or now - self._asked < _PACE:
            return self._ended
        self._asked = now
        try:
            with self._lock:
                state = self._api().inspect_container(self.ident)["State"]
        except NotFound:
            state = None
        except _LOST as error:
            if time.monotonic() - self._answered > _PATIENCE:
                raise EngineError(
                    f"The Docker daemon has not answered for {_PATIENCE:.0f} s ({type(error).__name__}).",
                    f"sudo systemctl restart docker; docker logs {self.ident[:12]} shows the run",
                ) from error
            return None
        self._answered = time.monotonic()
        ended = read_state(state)
        if ended is not None:
            self._finish(ended)
        return self._ended

    def _finish(self, ended: Ended) -> None:
        """The log is complete before anybody hears of the end."""
        self._done.set()
        if self._follower is not None:
            self._follower.join(_DRAIN)
        if self._timer is not None:
            self._timer.cancel()
        self._ended = ended

    def stop(self, grace: float) -> None:
        """SIGTERM now; SIGKILL after `grace` seconds if it has not ended by then."""
        if self._timer is not None or self._ended is not None:
            return
        self._signal("SIGTERM")
        self._timer = threading.Timer(grace, self._kill_late)
        self._timer.daemon = True
        self._timer.start()

    def kill(self) -> None:
        """SIGKILL now."""
        self._signal("SIGKILL")

    def _kill_late(self) -> None:
        with contextlib.suppress(EngineError):
            self.kill()

    def _signal(self, name: str) -> None:
        # 409 and 404: it has ended, which is what was wanted.
        try:
            with self._lock:
                self._api().kill(self.ident, name)
        except APIError as error:
            if error.status_code not in (404, 409):
                raise EngineError(f"Docker does not pass on {name}: {error.explanation}", f"docker kill {self.ident[:12]}") from error
        except _LOST as error:
            raise EngineError(
                f"Docker does not answer, so {name} did not reach the run ({type(error).__name__}).", f"docker kill {self.ident[:12]}"
            ) from error

    def follow(self, log: Path) -> None:
        """Copies the container's output to the file; across restarts of the daemon, and of fl, no line is lost or doubled."""
        if self._follower is None:
            log.touch()
            self._follower = threading.Thread(target=self._copy, args=(log,), name="fl-log", daemon=True)
            self._follower.start()

    def _copy(self, log: Path) -> None:
        # The stream ends without an error when the daemon dies, so only the container's own end is an end.
        while True:
            finishing = self._done.is_set()
            self._pass(log, follow=not finishing)
            if finishing:
                return
            self._done.wait(0.2)

    def catch_up(self, log: Path) -> None:
        """What came since the last copied line, once."""
        self._pass(log, follow=False)

    def _pass(self, log: Path, follow: bool) -> None:
        """Appends what is new. One copier at a time: whoever comes second leaves it the work and looks again."""
        with contextlib.suppress(*_LOST), log.open("ab", buffering=0) as file, _position(log).open("rb+", buffering=0) as position:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stamp, text in self._entries(position.read().decode("ascii", "replace"), follow):
                file.write(text)
                os.pwrite(position.fileno(), stamp.encode(), 0)  # stamps are all of one length

    def _entries(self, after: str, follow: bool) -> Iterator[tuple[str, bytes]]:
        """Time stamp and text of every piece of output later than the stamp. Docker sends one frame for each piece."""
        since = int(time_of(after)) if after else None
        with contextlib.closing(daemon.client(self._address, _ASK)) as client:
            stream: Any = client.logs(self.ident, stdout=True, stderr=True, stream=True, follow=follow, timestamps=True, since=since)
            for frame in stream:
                stamp, _, text = bytes(frame).partition(b" ")
                name = stamp.decode("ascii", "replace")
                if name > after:
                    yield name, text

    def remove(self) -> None:
        """Kills it if it runs and removes it with its volumes."""
        self._done.set()
        if self._follower is not None:
            self._follower.join(_DRAIN)
        with self._lock:
            try:
                self._api().remove_container(self.ident, force=True, v=True)
            except NotFound:
                pass
            except APIError as error:
                if error.status_code != 409:  # 409: its removal is under way
                    raise EngineError(
                        f"Docker does not remove the container: {error.explanation}", f"docker rm -f {self.ident[:12]}"
                    ) from error
            except _LOST as error:
                raise EngineError(
                    f"Docker does not answer, so the container stays ({type(error).__name__}).", f"docker rm -f {self.ident[:12]}"
                ) from error
            self._api().close()


def _position(log: Path) -> Path:
    """The file with the time stamp of the last copied line, beside the log."""
    path = log.with_name(f".{log.name}.position")
    path.touch()
    return path


def time_of(stamp: str) -> float:
    """Seconds since 1970 of Docker's time stamp (`2026-11-24T17:35:54.232903128Z`), fractions left out."""
    import calendar

    try:
        return float(calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0
