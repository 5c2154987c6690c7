"""Podman by its command line: it has no daemon that could be asked, or die."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import which
from typing import Any, Final

from fl.engines import Ended, ImageFacts, Started, cdi
from fl.engines.container_state import read_state
from fl.engines.docker import image_facts, run_detached
from fl.engines.docker_errors import explain_pull
from fl.engines.limits import hard_limits
from fl.errors import EngineError, ImageError
from fl.grants import EngineFacts
from fl.plan import Plan

_ASK: Final = 3.0
_WORK: Final = 60.0
_PACE: Final = 0.5
"""Seconds between two questions about a container."""
_SILENCE: Final = 3600.0
"""Seconds without a word after which a pull is given up. Podman tells nothing within a layer, so this is long."""


def environment() -> dict[str, str]:
    """The caller's, without a DOCKER_CONFIG that holds no config.json: podman stops at that."""
    values = dict(os.environ)
    if "DOCKER_CONFIG" in values and not Path(values["DOCKER_CONFIG"], "config.json").exists():
        del values["DOCKER_CONFIG"]
    return values


def podman(*arguments: str, timeout: float = _ASK) -> subprocess.CompletedProcess[str]:
    """One command, to its end. EngineError when podman is not there or does not come back."""
    try:
        return subprocess.run(
            ["podman", *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise EngineError("There is no podman command on PATH.", "https://podman.io/docs/installation\nfl run --engine host") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"podman {arguments[0]} did not end in {timeout:.0f} s.", "podman info; fl run --engine host") from error
    except OSError as error:
        raise EngineError(f"podman cannot be started: {error}", "podman info; fl run --engine host") from error


def _failed(what: str, done: subprocess.CompletedProcess[str]) -> EngineError:
    said = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1].removeprefix("Error: ")
    return EngineError(f"podman {what} failed: {said}", "podman info shows whether podman is well; fl run --engine host")


def parse_facts(info: Mapping[str, Any]) -> EngineFacts:
    """Out of `podman info`. Pure, but for the CDI folders and this process's limits."""
    host = info["host"]
    security = host.get("security") or {}
    rootless = bool(security.get("rootless"))
    return EngineFacts(
        name="podman",
        version=(info.get("version") or {}).get("Version"),
        rootless=rootless,
        nvidia_gpus=False,  # podman before 5 ignores --gpus and starts without
        cdi=cdi.devices(cdi.KNOWN_DIRECTORIES),
        selinux=bool(security.get("selinuxEnabled")),
        cgroup=2 if host.get("cgroupVersion") == "v2" else 1,
        crun=(host.get("ociRuntime") or {}).get("name") == "crun",
        same_files=not host.get("serviceIsRemote"),
        hard_limits=hard_limits(os.getpid(), rootless),
        storage=(info.get("store") or {}).get("graphRoot"),
    )


class PodmanEngine:
    """The podman of this machine."""

    def facts(self) -> EngineFacts:
        """Asked of `podman info`; takes half a second."""
        if which("podman") is None:
            raise EngineError("There is no podman command on PATH.", "https://podman.io/docs/installation\nfl run --engine host")
        done = podman("info", "--format", "json")
        try:
            return parse_facts(json.loads(done.stdout))
        except (ValueError, KeyError, TypeError) as error:
            raise _failed("info", done) from error

    def image(self, reference: str) -> ImageFacts | None:
        """What podman knows of a local image."""
        done = podman("image", "inspect", reference)
        try:
            return image_facts(reference, json.loads(done.stdout)[0]) if done.returncode == 0 else None
        except (ValueError, LookupError) as error:
            raise _failed("image inspect", done) from error

    def pull(self, reference: str, report: Callable[[str], None], check: Callable[[], None] = lambda: None) -> ImageFacts:
        """Fetches an image. Podman tells no bytes, so the seconds are told."""
        process = subprocess.Popen(
            ["podman", "pull", "--quiet", reference],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        started = shown = time.monotonic()
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said = process.communicate(timeout=0.2)[1]
                    break
                check()
                now = time.monotonic()
                if now - shown >= 5:
                    shown = now
                    report(f"pulling {reference}: {now - started:.0f} s")
                if now - started > _SILENCE:
                    raise ImageError(f"{reference} was not pulled within {_SILENCE:.0f} s.", f"podman pull {reference}")
        except BaseException:
            process.kill()
            process.wait()
            raise
        found = self.image(reference) if process.returncode == 0 else None
        if found is None:
            raise explain_pull(said, reference, "podman")
        return found

    def start(self, plan: Plan, environment_secrets: Mapping[str, str]) -> Started:
        """`podman run --detach …`; the command prints the container's id."""
        return PodmanRun(run_detached(plan, {**environment(), **environment_secrets}), watch=True)

    def adopt(self, ident: str) -> Started | None:
        """The container of that id or name."""
        done = podman("container", "inspect", "--format", "{{.Id}}", ident)
        return PodmanRun(done.stdout.strip()) if done.returncode == 0 else None


class PodmanRun:
    """A container of podman's. Its log is written by a podman process that needs no launcher."""

    def __init__(self, ident: str, watch: bool = False) -> None:
        self.ident = ident
        self._wait = self._waiter() if watch else None
        self._log: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        self._ended: Ended | None = None
        self._asked = 0.0

    def _waiter(self) -> subprocess.Popen[bytes]:
        """Cheaper than asking again and again; not for a container that is only looked at, since it would outlive the look."""
        return subprocess.Popen(
            ["podman", "wait", self.ident],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def poll(self) -> Ended | None:
        """None while it runs."""
        if self._ended is None and (self._wait is None or self._wait.poll() is not None) and time.monotonic() - self._asked >= _PACE:
            self._asked = time.monotonic()
            done = podman("container", "inspect", "--format", "{{json .State}}", self.ident, timeout=_WORK)
            ended = read_state(json.loads(done.stdout) if done.returncode == 0 else None)
            if ended is not None:
                self._finish(ended)
        return self._ended

    def _finish(self, ended: Ended) -> None:
        """The log is complete before anybody hears of the end."""
        if self._log is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._log.wait(5.0)
        if self._timer is not None:
            self._timer.cancel()
        self._ended = ended

    def stop(self, grace: float) -> None:
        """SIGTERM now; SIGKILL after `grace` seconds."""
        if self._timer is None and self._ended is None:
            self._signal("TERM")
            self._timer = threading.Timer(grace, self._kill_late)
            self._timer.daemon = True
            self._timer.start()

    def kill(self) -> None:
        """SIGKILL now."""
        self._signal("KILL")

    def _kill_late(self) -> None:
        with contextlib.suppress(EngineError):
            self.kill()

    def _signal(self, name: str) -> None:
        # A failure means that it has ended, which `poll` tells.
        podman("kill", "--signal", name, self.ident, timeout=_WORK)

    def follow(self, log: Path) -> None:
        """A podman process writes the log; it outlives the launcher and ends with the container."""
        if self._log is None:
            with log.open("ab") as file:
                self._log = subprocess.Popen(
                    ["podman", "logs", "--follow", self.ident],
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def catch_up(self, log: Path) -> None:
        """Nothing to do: see `follow`."""

    def remove(self) -> None:
        """Kills it if it runs and removes it with its volumes."""
        podman("rm", "--force", "--time", "0", "--volumes", self.ident, timeout=_WORK)
        for process in (self._wait, self._log):
            if process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5.0)
                if process.poll() is None:
                    process.kill()
                    process.wait()
