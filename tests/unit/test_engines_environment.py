"""environment.py: an environment is whole or not there, whatever happens while it is made. A stand-in for uv plays the installs."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fl.engines import environment, installer
from fl.errors import EngineError, Interrupted, MatrixError

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
UV = """#!/bin/sh
echo "$@" >> "$UV_LOG"
case "$1" in
venv) for last; do :; done; mkdir -p "$last/bin" "$last/lib/python3.9/site-packages"; ln -s "{python}" "$last/bin/python" ;;
pip) for a; do case "$a" in */bin/python) site=$(dirname $(dirname "$a"))/lib/python3.9/site-packages;; esac; done
  mkdir -p "$site/six-1.0.dist-info"
  {then} ;;
esac
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a script in uv's place; `then` is what its install does after the first package. Returns what it was asked."""
    log = tmp_path / "uv.log"
    monkeypatch.setenv("UV_LOG", str(log))

    def put(then: str = "true") -> Path:
        script = tmp_path / "uv"
        script.write_text(UV.format(python=sys.executable, then=then))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(installer, "uv_binary", lambda: str(script))
        log.write_text("")
        return log

    return put


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text("six==1.0 --hash=sha256:00\n")
    return path


def test_made_once_and_found_again(uv, lock: Path) -> None:
    log, told = uv(), []
    python = environment.ensure(lock, VERSION, told.append)
    assert os.path.realpath(python) == os.path.realpath(sys.executable)
    assert environment.ensure(lock, VERSION, told.append) == python
    assert log.read_text().count("pip sync") == 1
    assert "--require-hashes" in log.read_text()
    assert any("1 packages" in line for line in told)


def test_another_lock_is_another_environment(uv, lock: Path) -> None:
    uv()
    first = environment.location(lock, VERSION)
    assert first != environment.location(lock, "3.99")
    lock.write_text(lock.read_text() + "\n")
    assert environment.location(lock, VERSION) != first
    assert environment.ready(lock, VERSION) is None


def test_what_a_lock_says_of_itself_makes_no_other_environment(uv, lock: Path) -> None:
    """A row that only claims more gives its lock another header: nothing is installed again."""
    log = uv()
    python = environment.ensure(lock, VERSION, lambda text: None)
    lock.write_text(f"# row: {'0' * 64}\n{lock.read_text()}")
    assert environment.ready(lock, VERSION) == python
    assert environment.ensure(lock, VERSION, lambda text: None) == python
    assert log.read_text().count("pip sync") == 1


def test_build_constraints_are_passed(uv, lock: Path, tmp_path: Path) -> None:
    log = uv()
    environment.ensure(lock, VERSION, lambda text: None, tmp_path / "build.txt")
    assert f"--build-constraints {tmp_path / 'build.txt'}" in log.read_text()


@pytest.mark.parametrize("harm", ["marker", "python", "package", "garbage", "other lock"])
def test_a_broken_environment_is_made_again(uv, lock: Path, harm: str) -> None:
    uv()
    folder = environment.ensure(lock, VERSION, lambda text: None).parents[1]
    marker = folder / environment.MARKER
    if harm == "marker":
        marker.unlink()
    elif harm == "garbage":
        marker.write_text("[")
    elif harm == "other lock":
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "lock_sha256": "0"}))
    elif harm == "python":
        (folder / "bin/python").unlink()
    else:
        (folder / "lib/python3.9/site-packages/six-1.0.dist-info").rmdir()
    assert environment.ready(lock, VERSION) is None
    told: list[str] = []
    assert environment.ensure(lock, VERSION, told.append).exists()
    assert any("making it again" in line for line in told)
    assert environment.ready(lock, VERSION) is not None
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]


def test_an_interpreter_that_went_away_breaks_it(uv, lock: Path, tmp_path: Path) -> None:
    uv()
    folder = environment.ensure(lock, VERSION, lambda text: None).parents[1]
    (folder / "bin/python").unlink()
    (folder / "bin/python").symlink_to(tmp_path / "gone")
    assert environment.ready(lock, VERSION) is None


CHILD = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
from fl.engines import environment, installer
installer.uv_binary = lambda: {uv!r}
environment.ensure(Path({lock!r}), {version!r}, lambda text: print(text, flush=True))
"""


def child(lock: Path, tmp_path: Path, log: str = "out") -> subprocess.Popen[bytes]:
    code = CHILD.format(path=sys.path, uv=str(tmp_path / "uv"), lock=str(lock), version=VERSION)
    with (tmp_path / log).open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", code], stdout=out)


def test_a_killed_install_is_never_taken_for_a_good_one(uv, lock: Path, tmp_path: Path) -> None:
    log = uv("sleep 30")
    process = child(lock, tmp_path)
    deadline = time.monotonic() + 120
    while "pip sync" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert environment.location(lock, VERSION).exists()
    assert environment.ready(lock, VERSION) is None
    uv()
    assert environment.ensure(lock, VERSION, lambda text: None).exists()


def test_of_two_at_once_one_makes_it_and_the_other_waits_and_says_so(uv, lock: Path, tmp_path: Path) -> None:
    log = uv(f"until [ -e '{tmp_path}/go' ]; do sleep 0.05; done")
    processes = [child(lock, tmp_path, f"out{number}") for number in range(2)]

    def waiting() -> int:
        return sum("waiting for it" in (tmp_path / f"out{number}").read_text() for number in range(2))

    deadline = time.monotonic() + 120
    while not waiting():
        assert time.monotonic() < deadline, "neither waits"
        time.sleep(0.02)
    (tmp_path / "go").touch()
    assert [process.wait(120) for process in processes] == [0, 0]
    assert log.read_text().count("pip sync") == 1
    assert waiting() == 1


@pytest.mark.parametrize(
    ("said", "kind", "word"),
    [
        ("error: Hash mismatch for `six==1.16.0`", MatrixError, "hash"),
        ("error: failed to write: No space left on device (os error 28)", EngineError, "full"),
        ("error: Failed to fetch: `https://x/six/`\n  Caused by: dns error", EngineError, "cannot be reached"),
        ("error: operation timed out", EngineError, "cannot be reached"),
        ("  x No solution found: Because six was not found in the package registry", EngineError, "does not have"),
        ("error: Permission denied (os error 13)", EngineError, "cannot be written"),
        ("error: something else", EngineError, "something else"),
    ],
)
def test_every_failure_says_what_to_do_and_leaves_nothing(uv, lock: Path, tmp_path: Path, said: str, kind: type, word: str) -> None:
    (tmp_path / "said").write_text(said)
    uv(f"cat {tmp_path / 'said'} >&2; exit 2")
    with pytest.raises(kind, match=word) as raised:
        environment.ensure(lock, VERSION, lambda text: None)
    assert raised.value.remedy
    assert not environment.location(lock, VERSION).exists()


def test_python_of_another_version(lock: Path) -> None:
    with pytest.raises(EngineError, match=r"needs Python 3\.99") as raised:
        environment.ensure(lock, "3.99", lambda text: None)
    assert f"{VERSION} (" in raised.value.message
    assert "uv python install 3.99" in raised.value.remedy


def test_no_lock(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match="cannot be read"):
        environment.ensure(tmp_path / "none.txt", VERSION, lambda text: None)


def test_a_cache_that_is_a_file(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fl").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EngineError, match="cannot be made") as raised:
        environment.ensure(lock, VERSION, lambda text: None)
    assert "XDG_CACHE_HOME" in raised.value.remedy


def test_an_interrupt_ends_the_install(uv, lock: Path) -> None:
    uv("sleep 300")
    asked = threading.Event()
    threading.Timer(0.5, asked.set).start()

    def check() -> None:
        if asked.is_set():
            raise Interrupted("now")

    started = time.monotonic()
    with pytest.raises(Interrupted):
        environment.ensure(lock, VERSION, lambda text: None, None, check)
    assert time.monotonic() - started < 10
    assert not environment.location(lock, VERSION).exists()


def test_the_installer_gets_no_configuration_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/elsewhere")
    settings = installer.uv_settings()
    assert settings["UV_NO_CONFIG"] == "1"
    assert settings["UV_PYTHON_DOWNLOADS"] == "never"
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & set(settings)
