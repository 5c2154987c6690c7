"""The host engine's environments, really made: by uv, from a hashed lock, through this machine's package index."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl.engines import environment, installer, pythons
from fl.errors import EngineError, MatrixError

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
WANTED = "six==1.16.0\npackaging==24.2\n"


@pytest.fixture(scope="module")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pure-Python packages, locked here and now, so that no hash is written down by hand."""
    folder = tmp_path_factory.mktemp("lock")
    (folder / "in.txt").write_text(WANTED)
    argv = [
        installer.uv_binary(),
        "pip",
        "compile",
        "--quiet",
        "--generate-hashes",
        str(folder / "in.txt"),
        "-o",
        str(folder / "lock.txt"),
    ]
    done = subprocess.run(argv, env=installer.uv_settings(), capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.skip(f"the package index cannot be reached: {done.stderr[-200:]}")
    return folder / "lock.txt"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))


def versions(python: Path) -> str:
    code = "import six, packaging, sys; print(six.__version__, packaging.__version__, sys.prefix)"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout.strip()


def test_it_holds_what_the_lock_says_and_is_found_again_at_once(lock: Path) -> None:
    told: list[str] = []
    python = environment.ensure(lock, VERSION, told.append)
    assert versions(python) == f"1.16.0 24.2 {python.parents[1]}"
    assert pythons.inspect_interpreter(python, lock).ok
    assert any(line.startswith("Installed 2 packages") for line in told)
    said, began = list(told), time.monotonic()
    assert environment.ensure(lock, VERSION, told.append) == python
    assert time.monotonic() - began < 0.1
    assert told == said, "nothing was made"


def test_a_package_with_another_hash_is_refused(lock: Path, tmp_path: Path) -> None:
    forged = tmp_path / "forged.txt"
    lines = [line for line in lock.read_text().splitlines() if not line.strip().startswith("#")]
    forged.write_text("\n".join(line.split("sha256:")[0] + "sha256:" + "0" * 64 + (" \\" if line.endswith("\\") else "")
                                if "sha256:" in line else line for line in lines))  # fmt: skip
    with pytest.raises(MatrixError, match="hash"):
        environment.ensure(forged, VERSION, lambda text: None)
    assert environment.ready(forged, VERSION) is None


def test_an_index_that_is_not_there(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(EngineError, match="cannot be reached") as raised:
        environment.ensure(lock, VERSION, lambda text: None)
    assert "--python PATH" in raised.value.remedy


CHILD = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
from fl.engines import environment
{before}
print(environment.ensure(Path({lock!r}), {version!r}, lambda text: print(text, flush=True)))
"""


def child(lock: Path, before: str = "") -> subprocess.Popen[str]:
    code = CHILD.format(path=sys.path, lock=str(lock), version=VERSION, before=before)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [0.0, 0.15, 0.3])
def test_killed_at_any_moment_the_next_one_makes_it_whole(lock: Path, after: float) -> None:
    process = child(lock)
    folder = environment.location(lock, VERSION)
    deadline = time.monotonic() + 120
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    python = environment.ensure(lock, VERSION, lambda text: None)
    assert versions(python).startswith("1.16.0 24.2")


SLOW = """#!/bin/sh
touch {here}/began
sleep 2
mkdir -p {folder}
echo late > {folder}/late
touch {here}/ended
"""


def test_an_installer_that_outlives_its_launcher_is_waited_for(lock: Path, tmp_path: Path) -> None:
    """It would write into the environment that the next one makes."""
    folder = environment.location(lock, VERSION)
    slow = tmp_path / "slow-uv"
    slow.write_text(SLOW.format(here=tmp_path, folder=folder))
    slow.chmod(0o755)
    before = f"from fl.engines import installer\ninstaller.uv_binary = lambda: {str(slow)!r}"
    process = child(lock, before)
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    told: list[str] = []
    python = environment.ensure(lock, VERSION, told.append)
    assert (tmp_path / "ended").exists(), "it was waited for"
    assert told[0] == "another run is making this environment; waiting for it"
    assert not (folder / "late").exists()
    assert versions(python).startswith("1.16.0 24.2")


def test_two_at_once(lock: Path) -> None:
    both = [child(lock) for _ in range(2)]
    told = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(told).count("making an environment") == 1
    assert versions(environment.location(lock, VERSION) / "bin/python").startswith("1.16.0 24.2")


def test_a_package_that_was_taken_out_is_put_back(lock: Path) -> None:
    python = environment.ensure(lock, VERSION, lambda text: None)
    site = next((python.parents[1] / "lib").glob("python3*/site-packages"))
    (site / "six.py").unlink()
    for path in (site / "six-1.16.0.dist-info").iterdir():
        path.unlink()
    (site / "six-1.16.0.dist-info").rmdir()
    told: list[str] = []
    assert versions(environment.ensure(lock, VERSION, told.append)).startswith("1.16.0 24.2")
    assert any("making it again" in line for line in told)


def test_a_disk_that_is_full(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small file system of its own."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("a file system of 64 KB needs root")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small))
        with pytest.raises(EngineError, match="disk is full") as raised:
            environment.ensure(lock, VERSION, lambda text: None)
        assert "XDG_CACHE_HOME" in raised.value.remedy
        assert not environment.location(lock, VERSION).exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)
