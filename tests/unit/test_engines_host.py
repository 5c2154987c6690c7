"""host.py: real processes of this machine; nothing of a run is left behind, and nothing else is ever killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl import engines
from fl.engines import Ended, Started, processes
from fl.engines.host import HostEngine, child_environment, log_of
from fl.errors import EngineError, ImageError

RUN = f"host-test-{os.getpid()}"
"""Its processes are found by this name, so tests that run at the same time must not share it."""


def plan(code: str, run: str = RUN, **more: Any) -> Any:
    argv = (sys.executable, "-u", "-c", code)
    return SimpleNamespace(**{"run": run, "argv": argv, "working_directory": "/", "environment": {}, "secrets": {}, **more})


def wait(started: Started, seconds: float = 120) -> Ended:
    deadline = time.monotonic() + seconds
    while (ended := started.poll()) is None:
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.02)
    return ended


def until(true: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('out')", (0, None)),
        ("raise SystemExit(5)", (5, None)),
        ("import os; os.kill(os.getpid(), 9)", (137, "killed by SIGKILL")),
        ("import os; os.abort()", (134, "killed by SIGABRT")),
    ],
)
def test_exit_codes(code: str, expected: tuple[int, str | None]) -> None:
    ended = wait(HostEngine().start(plan(code), {}))
    assert (ended.exit_code, ended.reason) == expected


def test_both_streams_go_to_the_log_of_the_run() -> None:
    wait(HostEngine().start(plan("import sys; print('a'); print('b', file=sys.stderr)"), {}))
    assert log_of(RUN).read_text().split() == ["a", "b"]


def test_the_environment_of_the_child() -> None:
    base = {"PATH": "/usr/bin", "PYTHONPATH": "/leak", "RANK": "3", "HOME": "/h", "LD_LIBRARY_PATH": "/driver"}
    what = plan(
        "", environment={"OMP_NUM_THREADS": "2", "HF_TOKEN": "(hidden)"}, secrets={"HF_TOKEN": "environment"}, argv=("/e/bin/python",)
    )
    found = child_environment(what, {"HF_TOKEN": "secret"}, base)
    assert found["HF_TOKEN"] == "secret"
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["PATH"] == "/e/bin:/usr/bin"
    assert found["LD_LIBRARY_PATH"] == "/driver"
    assert not {"PYTHONPATH", "RANK"} & set(found)


def test_a_secret_that_is_not_given_is_not_its_placeholder() -> None:
    what = plan("", environment={"HF_TOKEN": "(hidden)"}, secrets={"HF_TOKEN": "environment"})
    assert "HF_TOKEN" not in child_environment(what, {}, {})


def test_stop_is_a_sigterm_that_can_be_obeyed() -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(143)); print('ready'); time.sleep(30)"
    started = HostEngine().start(plan(code), {})
    until(lambda: "ready" in log_of(RUN).read_text())
    began = time.monotonic()
    started.stop(20)
    assert time.monotonic() - began < 1
    assert wait(started).exit_code == 143


def test_after_the_grace_it_is_killed() -> None:
    started = HostEngine().start(plan("import signal, time; signal.signal(15, signal.SIG_IGN); print('ready'); time.sleep(60)"), {})
    until(lambda: "ready" in log_of(RUN).read_text())
    started.stop(0.5)
    assert wait(started) == Ended(137, False, "killed by SIGKILL")


STRAYS = """
import subprocess, sys, time
for new in (False, True):
    print("pid", subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"],
                                  start_new_session=new).pid)
{then}
"""


@pytest.mark.parametrize("how", ["ended", "killed", "removed"])
def test_children_are_gone_with_it_also_those_in_other_sessions(how: str) -> None:
    started = HostEngine().start(plan(STRAYS.format(then="" if how == "ended" else "time.sleep(60)")), {})
    until(lambda: log_of(RUN).read_text().count("pid") == 2)
    pids = [int(line.split()[1]) for line in log_of(RUN).read_text().splitlines()]
    if how == "killed":
        started.kill()
    elif how == "removed":
        started.remove()
    wait(started)
    until(lambda: all(processes.start_time(pid) is None for pid in pids))


def test_a_run_outlives_its_launcher_and_is_adopted(tmp_path: Path) -> None:
    launcher = f"""
import sys; sys.path[:0] = {sys.path!r}
from types import SimpleNamespace
from fl.engines.host import HostEngine
plan = SimpleNamespace(run="orphan-{os.getpid()}", argv=(sys.executable, "-uc", "import time; time.sleep(60)"),
                       working_directory="/", environment={{}}, secrets={{}})
print(HostEngine().start(plan, {{}}).ident, flush=True)
import time; time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    ident = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    adopted = HostEngine().adopt(ident)
    assert adopted is not None
    assert adopted.poll() is None
    adopted.stop(5)
    ended = wait(adopted)
    assert ended.exit_code == engines.UNKNOWN_EXIT
    assert HostEngine().adopt(ident) is None


def test_a_recycled_pid_is_not_the_run() -> None:
    pid = os.getpid()
    assert processes.alive(processes.identity(pid)) == pid
    for ident in (f"{pid}:1", f"{pid}:0", "0:0", "x:y", "", "1"):
        assert processes.alive(ident) is None
        assert HostEngine().adopt(ident) is None


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: processes.start_time(process.pid) is None)
    process.wait()


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="/none/python cannot be started"):
        HostEngine().start(plan("", argv=("/none/python",)), {})


def test_it_has_no_images() -> None:
    assert HostEngine().image("x") is None
    with pytest.raises(ImageError):
        HostEngine().pull("x", lambda text: None)
