"""The host engine: the plan's argv as a process group of this machine, with the interpreter of an environment made from the lock."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from fl import paths
from fl.engines import UNKNOWN_EXIT, Ended, ImageFacts, Started, processes, ranks
from fl.engines.pythons import clean_environment
from fl.errors import EngineError, ImageError
from fl.grants import EngineFacts
from fl.plan import Plan

_DISTRIBUTED = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Left over in a shell, these make the trainer wait for ranks that do not exist."""


def log_of(run: str) -> Path:
    """The log of a run: the processes write it themselves, so it goes on when the launcher dies."""
    return paths.runs_home() / run / "log.txt"


def child_environment(plan: Plan, secrets: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without other Pythons and stale ranks, then the plan's, then the secrets. Pure."""
    environment = {k: v for k, v in clean_environment(dict(base)).items() if k not in _DISTRIBUTED}
    folder = str(Path(plan.argv[0]).parent)
    environment["PATH"] = os.pathsep.join(p for p in (folder, environment.get("PATH", os.defpath)) if p)
    environment.update({k: v for k, v in plan.environment.items() if k not in plan.secrets})
    environment.update(secrets)
    environment[processes.MARK] = plan.run
    return environment


class HostEngine:
    """Starts processes; has no images."""

    def facts(self) -> EngineFacts:
        """Always there."""
        return EngineFacts(name="host", nvidia_gpus=True)

    def image(self, reference: str) -> ImageFacts | None:
        """None: the host engine has no images."""
        return None

    def pull(self, reference: str, report: Callable[[str], None], check: Callable[[], None] = lambda: None) -> ImageFacts:
        """ImageError: there is nothing to pull."""
        raise ImageError(f"The host engine runs no images; {reference} was asked for.", "--engine docker")

    def start(self, plan: Plan, environment_secrets: Mapping[str, str]) -> Started:
        """Starts the argv in a session of its own; stdout and stderr go to the run's log.txt."""
        log = log_of(plan.run)
        try:
            log.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    plan.argv,
                    cwd=plan.working_directory,
                    env=child_environment(plan, environment_secrets, os.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(
                f"{plan.argv[0]} cannot be started in {plan.working_directory}: {error.strerror or error}",
                "fl env shows the Pythons and folders that fl uses",
            ) from error
        return HostRun(processes.identity(process.pid), plan.run, process)

    def adopt(self, ident: str) -> Started | None:
        """The processes of a launcher that died; None when the first of them is gone."""
        pid = processes.alive(ident)
        return None if pid is None else HostRun(ident, processes.mark_of(pid))


class HostRun:
    """A process group that this launcher started (it can collect the exit code) or adopted (it cannot)."""

    def __init__(self, ident: str, run: str | None, process: subprocess.Popen[bytes] | None = None) -> None:
        self.ident = ident
        self._run = run
        self._process = process
        self._pid = int(ident.partition(":")[0])
        self._ended: Ended | None = None
        self._timer: threading.Timer | None = None
        self._oom_kills = processes.oom_kills()

    def poll(self) -> Ended | None:
        """None while the first process runs. When it has ended, whatever it left behind is killed."""
        if self._ended is None:
            self._ended = self._adopted() if self._process is None else self._own(self._process)
            if self._ended is not None and self._timer is not None:
                self._timer.cancel()
        return self._ended

    def _own(self, process: subprocess.Popen[bytes]) -> Ended | None:
        # The zombie keeps its number until it is collected, so the group that is killed here cannot be somebody else's.
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        processes.signal_group(process.pid, signal.SIGKILL)
        code = process.wait()
        if self._run is not None:
            processes.sweep(self._run)
        if code >= 0:
            return Ended(code, code == 1 and processes.oom_kills() > self._oom_kills and self._lost_to_the_kernel())
        oom = -code == signal.SIGKILL and processes.oom_kills() > self._oom_kills
        return Ended(128 - code, oom, "the kernel killed it: no memory left" if oom else f"killed by {_signal_name(-code)}")

    def _lost_to_the_kernel(self) -> bool:
        """Whether one of several processes was killed by SIGKILL: torchrun itself lives on and says so."""
        if self._run is None:
            return False
        with contextlib.suppress(OSError):
            gone = ranks.silent(log_of(self._run).read_text(encoding="utf-8", errors="replace")[-20_000:])
            return gone is not None and gone.killed
        return False

    def _adopted(self) -> Ended | None:
        if processes.alive(self.ident) is not None:
            return None
        if self._run is not None:
            processes.sweep(self._run)
        return Ended(UNKNOWN_EXIT, reason="ended after its launcher had gone, so nobody collected the exit code")

    def stop(self, grace: float) -> None:
        """SIGTERM to the first process, which tells its own; SIGKILL to everything after `grace` seconds."""
        if self._timer is None and self.poll() is None and self._living():
            processes.signal_process(self._pid, signal.SIGTERM)
            self._timer = threading.Timer(grace, self.kill)
            self._timer.daemon = True
            self._timer.start()

    def kill(self) -> None:
        """SIGKILL to the group and to those that left it."""
        if self._ended is None and self._living():
            processes.signal_group(self._pid, signal.SIGKILL)
            if self._run is not None:
                processes.sweep(self._run)

    def _living(self) -> bool:
        return processes.alive(self.ident) is not None

    def follow(self, log: Path) -> None:
        """Nothing to do for the run's own log, which the processes write themselves; any other place becomes a link to it."""
        if self._run is not None and log != log_of(self._run):
            with contextlib.suppress(FileExistsError):
                log.symlink_to(log_of(self._run))

    def catch_up(self, log: Path) -> None:
        """Nothing to do: the processes write the log themselves."""

    def remove(self) -> None:
        """Kills what still runs and collects it."""
        self.kill()
        if self._process is not None and self._ended is None:
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
            self.poll()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
