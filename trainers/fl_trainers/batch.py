"""`python -m fl_trainers.batch batch.json`: many small runs, where it is safe in forks of one process that has imported the libraries.

batch.json: `{"configs": [PATH …], "jobs": N, "seconds": N, "events": PATH}`. Every config is trained as `python -m fl_trainers PATH` would;
what it prints goes to log.txt beside it. Told as events: `case` with the config's path, its exit code and seconds, as each ends.
The exit code is 0 whatever the runs came to: their own records tell.

A run on an accelerator, and one that needs an optional package (lean.py), gets a process of its own: what those packages and
vendors' runtimes have set up does not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_trainers import lean
from fl_trainers.config import Config
from fl_trainers.progress import Events, log, start_log

KILLED = 137
"""Exit code of a run that did not end in its time."""


@dataclass(slots=True)
class Child:
    """One run that goes on."""

    config: str
    pid: int
    started: float
    process: subprocess.Popen[bytes] | None = None
    """Of one that is no fork. Kept: the interpreter waits for processes that nobody holds, and their exit codes are lost."""
    late: bool = False

    def ended(self) -> int | None:
        """The exit code; None: it goes on."""
        if self.process is not None:
            return self.process.poll()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


def main(arguments: list[str]) -> int:
    """Runs the batch to its end. SIGTERM and SIGINT reach the children, and no new one is started."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m fl_trainers.batch batch.json\n")
        return 2
    wanted = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    configs = [str(path) for path in wanted["configs"]]
    start_log()
    forks = {path for path in configs if _forks(Config.read(Path(path)))}
    if forks:
        _warm(Config.read(Path(min(forks))))
    batch = _Batch(Events(Path(wanted["events"])), int(wanted["jobs"]), float(wanted["seconds"]))
    batch.run(sorted(configs, key=lambda path: path not in forks), forks)
    return 143 if batch.stopped else 0


class _Batch:
    def __init__(self, events: Events, jobs: int, seconds: float) -> None:
        self.events, self.jobs, self.seconds = events, jobs, seconds
        self.children: list[Child] = []
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _frame: Any) -> None:
        self.stopped = True
        for child in self.children:
            os.kill(child.pid, signal.SIGTERM)

    def run(self, configs: list[str], forks: set[str]) -> None:
        waiting = list(configs)
        while self.children or (waiting and not self.stopped):
            while waiting and len(self.children) < self.jobs and not self.stopped:
                self.children.append(_start(waiting[0], fork=waiting.pop(0) in forks))
            self._collect()
            time.sleep(0.02)

    def _collect(self) -> None:
        for child in list(self.children):
            code, seconds = child.ended(), time.monotonic() - child.started
            if code is not None:
                self.children.remove(child)
                code = KILLED if child.late else code
                self.events.emit("case", config=child.config, exit=code, seconds=round(seconds, 2))
                log.info("%s: exit %d in %.1f s", Path(child.config).parent.name, code, seconds)
            elif seconds > self.seconds and not child.late:
                child.late = True
                os.kill(child.pid, signal.SIGKILL)


def _forks(config: Config) -> bool:
    return config.run.lane == "cpu" and not lean.needed(config)


def _warm(config: Config) -> None:
    """Imports what every forked run needs."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    lean.hide(config)
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import Trainer  # noqa: F401

    import fl_trainers.loop
    import fl_trainers.session  # noqa: F401


def _start(config: str, *, fork: bool) -> Child:
    started = time.monotonic()
    if not fork:
        with Path(config).with_name("log.txt").open("w", encoding="utf-8") as file:
            process = subprocess.Popen([sys.executable, "-m", "fl_trainers", config], stdout=file, stderr=file)
        return Child(config, process.pid, started, process)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(config)
    return Child(config, pid, started)


def _child(config: str) -> None:
    code = 1
    try:
        with Path(config).with_name("log.txt").open("w", encoding="utf-8") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        log.handlers.clear()  # the run makes its own
        from fl_trainers.__main__ import main as train

        code = train([config])
    except BaseException:  # noqa: BLE001 - the parent must not go on in a second copy
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
