"""podman.py with a stand-in for the podman command; tests/engines has the real one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl import engines
from fl.engines import Ended
from fl.engines.podman import environment, parse_facts
from fl.errors import EngineError, ImageError

INFO: dict[str, Any] = {
    "host": {
        "cgroupVersion": "v2",
        "ociRuntime": {"name": "crun"},
        "security": {"rootless": True, "selinuxEnabled": True},
        "serviceIsRemote": False,
    },
    "version": {"Version": "5.4.2"},
}


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the command: a shell `case` by its first words."""
    script = tmp_path / "bin/podman"
    script.parent.mkdir()
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")

    def write(cases: str) -> None:
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\ncase "$1 $2" in\n{cases}\nesac\n')
        script.chmod(0o755)

    return write


def test_facts_of_a_rootless_one() -> None:
    found = parse_facts(INFO)
    assert (found.name, found.version, found.rootless, found.selinux, found.cgroup, found.crun, found.same_files) == (
        "podman", "5.4.2", True, True, 2, True, True)  # fmt: skip
    assert not found.nvidia_gpus


def test_facts_of_a_remote_old_one() -> None:
    host = {"cgroupVersion": "v1", "ociRuntime": {"name": "runc"}, "security": {}, "serviceIsRemote": True}
    found = parse_facts({"host": host, "version": {}})
    assert (found.rootless, found.cgroup, found.crun, found.same_files) == (False, 1, False, False)


def test_facts_are_asked_of_the_command(podman) -> None:
    podman(f"'info '*) echo '{json.dumps(INFO)}' ;;")
    assert engines.get("podman").facts().version == "5.4.2"


@pytest.mark.parametrize(
    ("cases", "said"),
    [("*) echo 'Error: storage is broken' >&2; exit 125 ;;", "storage is broken"), ("*) sleep 100 ;;", "did not end in 3 s")],
)
def test_one_that_is_not_well(podman, cases: str, said: str) -> None:
    podman(cases)
    began = time.monotonic()
    with pytest.raises(EngineError, match=said):
        engines.get("podman").facts()
    assert time.monotonic() - began < 6


def test_no_podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no podman command"):
        engines.get("podman").facts()


def test_a_docker_folder_without_a_config_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert "DOCKER_CONFIG" not in environment()
    (tmp_path / "config.json").write_text("{}")
    assert environment()["DOCKER_CONFIG"] == str(tmp_path)


def test_a_run_from_start_to_end(podman, tmp_path: Path) -> None:
    state = json.dumps({"Status": "exited", "ExitCode": 4, "OOMKilled": False, "Error": ""})
    over = f"'container inspect') echo '{state}' ;;\n'logs '*) echo line ;;"
    podman(f"'run '*) echo abc ;;\n'wait '*) until [ -e '{tmp_path}/go' ]; do sleep 0.05; done ;;\n{over}")
    plan: Any = SimpleNamespace(run="r", engine="podman", image=SimpleNamespace(reference="x"), argv=("podman", "run", "--detach", "x"))
    started = engines.get("podman").start(plan, {})
    assert started.ident == "abc"
    started.follow(tmp_path / "log.txt")
    assert started.poll() is None
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 60
    while (ended := started.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended == Ended(4)
    assert (tmp_path / "log.txt").read_text() == "line\n"
    started.remove()
    assert "rm --force --time 0 --volumes abc" in (tmp_path / "asked").read_text()


def test_a_pull_that_fails(podman) -> None:
    podman("'pull '*) echo 'Error: reading manifest 1 in reg/x: manifest unknown' >&2; exit 125 ;;")
    with pytest.raises(ImageError, match="no image reg/x:1"):
        engines.get("podman").pull("reg/x:1", lambda text: None)


def test_nothing_left_to_adopt(podman) -> None:
    podman("*) exit 125 ;;")
    assert engines.get("podman").adopt("abc") is None
