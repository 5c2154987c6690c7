"""docker.py and its helpers: what the daemon and the command say, as facts and errors. The daemon is a stand-in on a real socket."""

from __future__ import annotations

import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl import engines
from fl.engines import Ended, cdi, daemon, docker, limits
from fl.engines.container_state import read_state
from fl.engines.docker_errors import NameInUse, explain_pull, explain_start
from fl.engines.docker_pull import Progress
from fl.errors import EngineError, HardwareError, ImageError, RecipeError, UsageError

INFO = {"ServerVersion": "28.5.2", "CgroupVersion": "2", "SecurityOptions": ["name=seccomp,profile=builtin"], "Runtimes": {"runc": {}}}


@contextmanager
def speaking(path: Path, answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """A daemon on a UNIX socket that answers by the start of the path."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, value = next((a for start, a in answers.items() if self.path.startswith(start)), (404, {"message": "page not found"}))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def address_string(self) -> str:
            return "test"

        def log_message(self, *arguments: Any) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"unix://{path}"
        server.shutdown()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker command on PATH that does what the test writes into it."""
    script = tmp_path / "bin/docker"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return script


def facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], create: tuple[int, Any] = (404, {"message": "No such image"})
):
    with speaking(tmp_path / "d.sock", {"/info": (200, info), "/containers/create": create}) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        return engines.get("docker").facts()


def test_facts_of_a_plain_daemon(command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts(tmp_path, monkeypatch, INFO)
    assert (found.version, found.rootless, found.userns_remap, found.cgroup, found.same_files) == ("28.5.2", False, False, 2, True)
    assert found.nvidia_gpus is False
    assert found.cdi == {}


def test_facts_of_a_special_one(command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi/nvidia.yaml").write_text("kind: nvidia.com/gpu\ndevices: [{name: '0'}, {name: all}]\n")
    options = ["name=rootless", "name=userns", "name=selinux"]
    info = {**INFO, "SecurityOptions": options, "Runtimes": {"nvidia": {}}, "CDISpecDirs": [str(tmp_path / "cdi")]}
    found = facts(tmp_path, monkeypatch, info)
    assert (found.rootless, found.userns_remap, found.selinux, found.nvidia_gpus) == (True, True, True, True)
    assert found.cdi == {"nvidia.com/gpu": frozenset({"0", "all"})}


def test_a_daemon_that_sees_other_files(command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'invalid mount config for type "bind": bind source path does not exist: /x'
    assert facts(tmp_path, monkeypatch, INFO, (400, {"message": said})).same_files is False
    assert not list(Path.home().glob(".fl-nonce-*"))


def test_podmans_socket_is_not_docker(command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="podman") as raised:
        facts(tmp_path, monkeypatch, {**INFO, "BuildahVersion": "1.28"})
    assert "--engine podman" in raised.value.remedy


def test_no_socket_no_listener_no_permission(command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'none.sock'}")
    with pytest.raises(EngineError, match="there is no socket"):
        engines.get("docker").facts()
    with socketserver.UnixStreamServer(str(tmp_path / "dead.sock"), BaseHTTPRequestHandler):
        pass
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'dead.sock'}")
    with pytest.raises(EngineError, match="No Docker daemon listens"):
        engines.get("docker").facts()
    refused = daemon.unreachable("unix:///var/run/docker.sock", PermissionError(13, "Permission denied"))
    assert "usermod" in refused.remedy


def test_a_daemon_that_hangs_is_an_error_within_three_seconds(command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "hung.sock"))
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'hung.sock'}")
        began = time.monotonic()
        with pytest.raises(EngineError, match="it hangs"):
            engines.get("docker").facts()
        assert time.monotonic() - began < 3


def test_no_docker_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no docker command"):
        engines.get("docker").facts()


def test_another_machine_by_ssh(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://gpu-box")
    with pytest.raises(EngineError, match="another machine") as raised:
        engines.get("docker").facts()
    assert "--engine host" in raised.value.remedy


def test_the_context_of_the_command_is_followed(tmp_path: Path) -> None:
    import hashlib

    assert daemon.endpoint({"DOCKER_HOST": "tcp://h:1"}) == "tcp://h:1"
    assert daemon.endpoint({"DOCKER_CONFIG": str(tmp_path)}) == daemon.DEFAULT
    (tmp_path / "config.json").write_text('{"currentContext": "rootless"}')
    with pytest.raises(EngineError, match="rootless"):
        daemon.endpoint({"DOCKER_CONFIG": str(tmp_path)})
    meta = tmp_path / "contexts/meta" / hashlib.sha256(b"rootless").hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text('{"Endpoints": {"docker": {"Host": "unix:///run/user/1/docker.sock"}}}')
    assert daemon.endpoint({"DOCKER_CONFIG": str(tmp_path)}) == "unix:///run/user/1/docker.sock"
    assert daemon.endpoint({"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "default"}) == daemon.DEFAULT


@pytest.mark.parametrize(
    ("reference", "digests", "expected"),
    [
        ("reg:5000/fl:1", ["reg:5000/fl@sha256:aa"], "sha256:aa"),
        ("fl:1", ["docker.io/library/fl@sha256:bb"], "sha256:bb"),
        ("reg/fl@sha256:cc", ["reg/fl@sha256:cc"], "sha256:cc"),
        ("fl:1", ["elsewhere/fl@sha256:dd"], None),
        ("fl:1", [], None),
    ],
)
def test_the_digest_is_that_of_the_reference(reference: str, digests: list[str], expected: str | None) -> None:
    labels = {"Config": {"Labels": {"fl.stack": "s"}}}
    inspected = {"Id": "sha256:1", "RepoDigests": digests, "Os": "linux", "Architecture": "arm64", "Variant": "v8", **labels}
    found = docker.image_facts(reference, inspected)
    assert found.digest == expected
    assert found.platform == "linux/arm64"
    assert found.labels == {"fl.stack": "s"}


PLAN: Any = SimpleNamespace(run="r", engine="docker", image=SimpleNamespace(reference="fl-train:x"), argv=("docker", "run", "--detach"))


@pytest.mark.parametrize(
    ("said", "kind", "word"),
    [
        ("docker: Error response from daemon: No such image: x.\nSee 'docker run --help'.", ImageError, "no image fl-train:x"),
        ("Unable to find image 'x' locally\ndocker: … lookup registry: no such host.", ImageError, "no such host"),
        (
            'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
            EngineError,
            "nvidia-container-toolkit",
        ),
        ("docker: … nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8", HardwareError, "too old"),
        ("docker: … CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=9.", EngineError, "gpu=9"),
        (
            'docker: … error mounting "/lib/libcuda.so.1.2" to rootfs at "/lib/libcuda.so.1": stat /lib/libcuda.so.1.2: no such file',
            EngineError,
            "CDI spec names /lib/libcuda.so.1.2",
        ),
        ("docker: … error setting rlimit type 8: operation not permitted: unknown.", EngineError, "type 8"),
        ('docker: … invalid mount config for type "bind": bind source path does not exist: /d.', RecipeError, "/d"),
        ('docker: … error gathering device information while adding custom device "/dev/kfd": no such file', HardwareError, "/dev/kfd"),
        ('docker: … Conflict. The container name "/fl-r" is already in use by container "1".', NameInUse, "fl-r"),
        ("docker: … mkdir /var/lib/docker/overlay2/1: no space left on device.", EngineError, "full"),
        ("docker: Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", EngineError, "went away"),
        ('docker: … exec: "python": executable file not found in $PATH: unknown.', ImageError, "python"),
        ("docker: something new", EngineError, "something new"),
        ("", EngineError, "nothing"),
        ("Error: statfs /d: no such file or directory", RecipeError, "/d"),
        ("Error: nope:1: image not known", ImageError, "nope"),
        ("Error: stat /dev/kfd: no such file or directory", HardwareError, "/dev/kfd"),
    ],
)
def test_every_refusal_of_a_start_has_its_class(said: str, kind: type, word: str) -> None:
    error = explain_start(said, PLAN)
    assert type(error) is kind
    assert word in error.message
    assert error.remedy
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("manifest for reg/x:1 not found: manifest unknown: manifest unknown", "no image"),
        ("unauthorized: authentication required", "refuses"),
        ('Get "https://reg/v2/": no basic auth credentials', "refuses"),
        ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "full"),
        ("filesystem layer verification failed for digest sha256:00", "damaged"),
        ("dial tcp 127.0.0.1:5000: connect: connection refused", "cannot be pulled"),
    ],
)
def test_every_failure_of_a_pull(said: str, word: str) -> None:
    error = explain_pull(said, "reg/x:1", "docker")
    assert isinstance(error, ImageError)
    assert word in error.message
    assert error.remedy


def test_start_returns_the_id_and_hands_secrets_to_the_command_only(command: Path, tmp_path: Path) -> None:
    command.write_text(f'#!/bin/sh\necho "$HF_TOKEN" > {tmp_path / "seen"}\necho 0123abc\n')
    assert docker.run_detached(PLAN, {"PATH": str(command.parent), "HF_TOKEN": "s3cret"}) == "0123abc"
    assert (tmp_path / "seen").read_text() == "s3cret\n"
    assert "s3cret" not in " ".join(PLAN.argv)


@pytest.mark.parametrize(
    ("said", "removed"), [("executable file not found", True), ('name "/fl-r" is already in use by container "1"', False)]
)
def test_a_failed_start_leaves_nothing_and_takes_nothing_of_others(command: Path, tmp_path: Path, said: str, removed: bool) -> None:
    command.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path / 'asked'}\n[ $1 = rm ] || {{ echo '{said}' >&2; exit 125; }}\n")
    with pytest.raises((ImageError, EngineError)):
        docker.run_detached(PLAN, {"PATH": f"{command.parent}:/bin"})
    assert ("rm --force fl-r" in (tmp_path / "asked").read_text()) is removed


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "running"}, None),
        ({"Status": "paused"}, None),
        ({"Status": "exited", "ExitCode": 3, "Error": ""}, Ended(3)),
        (
            {"Status": "exited", "ExitCode": 3, "OOMKilled": True},
            Ended(3, True, "the kernel killed it: the container's memory limit was reached"),
        ),
        ({"Status": "exited", "ExitCode": 137}, Ended(137, False, "killed by SIGKILL")),
        ({"Status": "dead", "ExitCode": 1, "Error": "driver failed"}, Ended(1, False, "driver failed")),
        (None, Ended(-1, False, "the container was removed by somebody else")),
    ],
)
def test_states(state: dict[str, Any] | None, expected: Ended | None) -> None:
    assert read_state(state) == expected


def test_progress_of_a_pull() -> None:
    progress = Progress()
    assert progress.line() == "waiting for the registry"
    progress.add({"status": "Downloading", "id": "a", "progressDetail": {"current": 10_000_000, "total": 100_000_000}})
    progress.add({"status": "Downloading", "id": "b", "progressDetail": {"current": 2_000_000, "total": 4_000_000}})
    assert progress.line() == "12 of 104 MB"
    progress.add({"status": "Download complete", "id": "b"})
    assert progress.line() == "14 of 104 MB"
    progress.add({"status": "Download complete", "id": "a"})
    progress.add({"status": "Extracting", "id": "a", "progressDetail": {"current": 1, "total": 9}})
    assert progress.line() == "extracting"


def test_cdi_leaves_out_what_is_stale_or_broken(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("")
    spec = {"kind": "v.com/gpu", "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "hostPath": str(there)}]}},
        {"name": "1", "containerEdits": {"deviceNodes": [{"path": str(tmp_path / "gone")}]}},
        {"name": 2, "containerEdits": {"mounts": [{"hostPath": str(there)}]}},
        {"no": "name"}, "x"]}  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(spec))
    old = {"kind": "w.com/gpu", "containerEdits": {"mounts": [{"hostPath": str(tmp_path / "libcuda.so.1")}]}, "devices": [{"name": "0"}]}
    (tmp_path / "b.yaml").write_text(json.dumps(old))
    (tmp_path / "c.yaml").write_text("kind: [")
    (tmp_path / "d.json").write_text("[]")
    (tmp_path / "e.txt").write_text(json.dumps({"kind": "x.com/gpu", "devices": [{"name": "0"}]}))
    (tmp_path / "f.yaml").write_bytes(b"\xff\xfe")
    assert cdi.devices([str(tmp_path), "/nowhere"]) == {"v.com/gpu": frozenset({"0", "2"})}


@pytest.mark.parametrize(("host_path", "fresh"), [("/" + "a" * 5000, False), ("/a\0b", False), ("/nowhere/x", False), ("/dev/null", True)])
def test_cdi_with_a_path_of_any_kind(tmp_path: Path, host_path: str, fresh: bool) -> None:
    spec = {"kind": "v.com/gpu", "devices": [{"name": "0", "containerEdits": {"mounts": [{"hostPath": host_path}]}}]}
    (tmp_path / "a.json").write_text(json.dumps(spec))
    assert cdi.devices([str(tmp_path)]) == ({"v.com/gpu": frozenset({"0"})} if fresh else {})
    assert list(cdi.stale([str(tmp_path)]).values()) == ([] if fresh else [host_path])


def test_cdi_files_that_this_user_may_not_look_at_are_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver below a folder of root's, as the GPU operator has it: the daemon finds it."""
    spec = {"kind": "v.com/gpu", "devices": [{"name": "0"}], "containerEdits": {"mounts": [{"hostPath": "/run/closed/libcuda.so.1"}]}}
    (tmp_path / "a.json").write_text(json.dumps(spec))
    real = os.stat

    def refusing(path: Any, **more: Any) -> os.stat_result:
        if str(path).startswith("/run/closed"):
            raise PermissionError(13, "Permission denied")
        return real(path, **more)

    monkeypatch.setattr(os, "stat", refusing)
    assert cdi.devices([str(tmp_path)]) == {"v.com/gpu": frozenset({"0"})} and cdi.stale([str(tmp_path)]) == {}


KEYS = st.sampled_from(["kind", "devices", "name", "containerEdits", "mounts", "deviceNodes", "hostPath", "path", "hooks"])
VALUES = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=6), st.sampled_from(["v.com/gpu", "/dev/null", "/gone"]))
JSON = st.recursive(
    VALUES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)), max_leaves=15
)


@settings(max_examples=150, deadline=None)
@given(value=JSON, text=st.binary(max_size=60))
def test_cdi_of_any_shape_is_an_answer(tmp_path_factory: pytest.TempPathFactory, value: Any, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "cdi"
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps(value))
    (folder / "b.yaml").write_bytes(text)
    (folder / "c.json").write_text(json.dumps({"kind": "v.com/gpu", "devices": [value, {"name": "0", "containerEdits": value}]}))
    for found in (cdi.devices([str(folder)]), cdi.devices([str(folder)], hooks=False), cdi.stale([str(folder)])):
        assert isinstance(found, dict) and json.dumps(list(found))


LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max stack size            8388608              unlimited            bytes
Max open files            1024                 20000                files
Max locked memory         65536                8388608              bytes
Max nice priority         0                    0
"""


def test_hard_limits() -> None:
    assert limits.parse(LIMITS) == {"nofile": 20000, "memlock": 8388608}
    assert limits.parse("") == {}
    assert limits.hard_limits(None, False) == {}
    assert limits.hard_limits(2**22 + 1, False) == {}


@pytest.mark.parametrize(("capabilities", "may"), [("000001ffffffffff", True), ("000001fffeffffff", False), ("0000000000000000", False)])
def test_only_with_the_capability_limits_may_be_raised(capabilities: str, may: bool) -> None:
    assert limits._may_raise(f"Name:\tdockerd\nCapEff:\t{capabilities}\n") is may


def test_an_unknown_engine_comes_with_the_nearest() -> None:
    with pytest.raises(UsageError) as raised:
        engines.get("dokcer")
    assert raised.value.remedy == "--engine docker"
