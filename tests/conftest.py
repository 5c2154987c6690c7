"""What all tests share: folders of their own, no settings of the caller, and where the shared records are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
HOSTS = ROOT / "tests" / "data" / "hosts"
APART = frozenset({"test_host"})
"""Files of tests/engines that touch no daemon and no image."""
_OURS = ("FL_REPLAY", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
         "ASCEND_RT_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "SLURM_JOB_ID", "XDG_DATA_HOME")  # fmt: skip


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell starts what runs beside it so, and every process of a test would inherit that Ctrl-C means nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Runs and settings of a test are its own. Unit tests have their own cache too; real ones share it, since it holds environments."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    if "unit" in Path(str(request.fspath)).parts:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for name in _OURS:
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` one process takes all tests of the engines in turn, since they share images and daemons, beside another that
    takes file by file of the rest, whose tests share what they trained."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(super()._split_scope(nodeid))
            return "engines" if file.parent.name == "engines" and file.stem not in APART else str(file)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def fl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `fl` as a user would, in a process of its own."""

    def call(*arguments: str, timeout: float = 180, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'launcher'}:{ROOT / 'trainers'}", "COLUMNS": "120"}
        environment.update(options.pop("env", {}))  # type: ignore[call-overload]
        return subprocess.run(
            [sys.executable, "-m", "fl", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            check=False,
            **options,
        )  # type: ignore[call-overload,no-any-return]

    return call


@pytest.fixture(scope="session")
def train_python() -> Path:
    """An interpreter with the trainer's libraries: FL_TRAIN_PYTHON, or the environment that fl makes from the CPU row's lock."""
    given = os.environ.get("FL_TRAIN_PYTHON")
    if given:
        return Path(given)
    sys.path[:0] = [str(ROOT / "launcher"), str(ROOT / "trainers")]
    from fl import ui
    from fl.engines import environment, pythons
    from fl.images import lock

    locked = lock.path("cpu-torch213", "train", "linux/amd64")
    if locked is None or "3.11" not in pythons.pythons():
        pytest.skip("needs Python 3.11 for the CPU row's lock")
    return environment.ensure(locked, "3.11", ui.step, lock.BUILD_CONSTRAINTS)
