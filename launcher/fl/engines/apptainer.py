"""Apptainer: no daemon, so a run is a process group of the caller's, as on the host, and every scheduler's limits hold."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fl import paths
from fl.apptainer_argv import MARK, SCRATCH
from fl.engines import Ended, ImageFacts, Started, apptainer_errors, apptainer_image, cdi, processes
from fl.engines.host import HostRun, log_of
from fl.errors import EngineError, HardwareError, ImageError
from fl.grants import EngineFacts
from fl.plan import Plan

_OLDEST: Final = (1, 1)
"""The first with --no-eval: older ones run what stands in a variable's value as shell code."""
_CDI: Final = (1, 5)
"""The first with --device."""
_KEPT: Final = ("CACHEDIR", "TMPDIR", "CONFIGDIR", "DOCKER_USERNAME", "DOCKER_PASSWORD")
_ASK: Final = 3.0


def version(said: str) -> tuple[int, ...]:
    """Numbers of `apptainer version 1.4.5-2`; empty when there are none."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(n) for n in match.groups("0")) if match else ()


def child_environment(base: Mapping[str, str], secrets: Mapping[str, str], run: str) -> dict[str, str]:
    """The caller's, without settings that would bind, pass or set what the plan does not say. Pure."""
    settings = re.compile(rf"(APPTAINER|SINGULARITY)(ENV_|_(?!({'|'.join(_KEPT)})$))")
    return {**{k: v for k, v in base.items() if not settings.match(k)}, **secrets, MARK: run}


def run_of(session: int) -> str | None:
    """The run of a session, by the mark of any process in it: apptainer's own first process does away with its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(folder.name)) == session and (mark := processes.mark_of(int(folder.name))):
                return mark
    return None


class ApptainerEngine:
    """The apptainer of this machine."""

    def facts(self) -> EngineFacts:
        """Its version, and whether this caller can use it."""
        if shutil.which("apptainer") is None:
            raise EngineError("There is no apptainer command on PATH.", "https://apptainer.org/docs/admin\nfl run --engine host")
        try:
            pwd.getpwuid(os.getuid())
        except KeyError as error:
            raise EngineError(
                f"apptainer starts nothing for a user without a passwd entry (uid {os.getuid()}).",
                "fl run --engine docker; fl run --engine host",
            ) from error
        try:
            done = subprocess.run(
                ["apptainer", "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(f"apptainer cannot be started: {error}", "apptainer --version; fl run --engine host") from error
        found = version(done.stdout)
        if done.returncode != 0 or not found:
            raise EngineError(f"apptainer is not well: {apptainer_errors.plain(done.stderr or done.stdout)[-300:]}", "apptainer --version")
        shown = ".".join(map(str, found))
        if found < _OLDEST:
            raise EngineError(f"apptainer {shown} is too old: fl needs 1.1 or newer.", "https://apptainer.org\nfl run --engine host")
        devices = cdi.devices(cdi.KNOWN_DIRECTORIES, hooks=False) if found >= _CDI else {}
        return EngineFacts(name="apptainer", version=shown, nvidia_gpus=False, cdi=devices)

    def image(self, reference: str) -> ImageFacts | None:
        """The image's file, or the image in Docker's store that it can be made from."""
        return apptainer_image.find(reference)

    def pull(self, reference: str, report: Callable[[str], None], check: Callable[[], None] = lambda: None) -> ImageFacts:
        """Makes the file, from Docker's store or a registry. Takes minutes for a large image."""
        return apptainer_image.fetch(reference, report, check)

    def start(self, plan: Plan, environment_secrets: Mapping[str, str]) -> Started:
        """Starts the argv in a session of its own; stdout and stderr go to the run's log.txt."""
        if plan.image.file is None or not Path(plan.image.file).exists():
            raise ImageError(f"There is no image {plan.image.file}.", f"fl run makes it from {plan.image.reference}")
        gone = [node for node in plan.devices if node.startswith("/dev/") and not Path(node).exists()]
        if gone:  # apptainer warns and starts without
            raise HardwareError(
                f"A device of the plan is not there: {', '.join(gone)}", "fl hw shows the devices that this machine has now"
            )
        log = log_of(plan.run)
        try:
            (log.parent / SCRATCH).mkdir(parents=True, mode=0o700, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    plan.argv,
                    cwd=log.parent,
                    env=child_environment(os.environ, environment_secrets, plan.run),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"apptainer cannot be started: {error.strerror or error}", "apptainer --version") from error
        return ApptainerRun(processes.identity(process.pid), plan.run, process, plan)

    def adopt(self, ident: str) -> Started | None:
        """The processes of a launcher that died; None when the first of them is gone."""
        pid = processes.alive(ident)
        return None if pid is None else ApptainerRun(ident, run_of(pid))


class ApptainerRun(HostRun):
    """The first process is apptainer's: it passes SIGTERM on to the program, and nothing in the container outlives it."""

    def __init__(self, ident: str, run: str | None, process: subprocess.Popen[bytes] | None = None, plan: Plan | None = None) -> None:
        super().__init__(ident, run, process)
        self._plan = plan

    def poll(self) -> Ended | None:
        """None while it runs. The error, once, when apptainer did not come to start the program."""
        first = self._ended is None
        ended = super().poll()
        if first and ended is not None and ended.exit_code == apptainer_errors.FAILED and self._plan is not None:
            said = apptainer_errors.fatal(_end_of(log_of(self._plan.run)))
            if said is not None:
                raise apptainer_errors.explain_start(said, self._plan)
        return ended

    def remove(self) -> None:
        """Kills what still runs, collects it, and removes what was in its /tmp."""
        super().remove()
        if self._run is not None:
            shutil.rmtree(paths.runs_home() / self._run / SCRATCH, ignore_errors=True)


def _end_of(log: Path, most: int = 8192) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
