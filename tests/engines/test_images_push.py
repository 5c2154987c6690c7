"""`fl images push` and `tags` against real registries, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_tools import BOX, digest_of, docker, faulty, fl, flip, need_docker, registry, tiny

from fl import __version__
from fl.images import tags

pytestmark = pytest.mark.engine
STACK = "cpu-torch213"
BOTH = "cuda130-torch214"
NAME = "fl-test/push:1"


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    need_docker()
    yield tiny(NAME)
    docker("image", "rm", "-f", NAME)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    (tmp_path / "storage").mkdir()
    return tmp_path / "storage"


@pytest.fixture
def host(storage: Path) -> Iterator[str]:
    with registry(storage) as address:
        yield address
        forget(address)


def forget(host: str) -> None:
    """Takes the names of a registry that is going away out of the daemon."""
    names = docker("image", "ls", "--digests", "--format", "{{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}").stdout.split()
    mine = sorted({name for name in names if name.startswith(f"{host}/") and "<none>" not in name})
    if mine:
        docker("image", "rm", *mine)


def test_both_names_have_the_digest_that_is_printed_and_recorded(image: str, host: str) -> None:
    done = fl("images", "push", image, "--registry", f"{host}/team", "--read-back", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    names = [tags.reference(STACK, registry=f"{host}/team"), tags.moving(STACK, registry=f"{host}/team")]
    assert document["names"] == names
    assert {digest_of(name) for name in names} == {document["digest"]}
    (line,) = (Path(os.environ["XDG_STATE_HOME"]) / "fl" / "pushed.jsonl").read_text().splitlines()
    assert json.loads(line)["digest"] == document["digest"]
    assert docker("pull", f"{host}/team/fl-train@{document['digest']}").returncode == 0


def test_a_branch_moves_one_name_and_a_release_never_moves(image: str, host: str) -> None:
    assert fl("images", "push", image, "--registry", host, "--moving").returncode == 0
    release, moving = tags.reference(STACK, registry=host), tags.moving(STACK, registry=host)
    assert digest_of(release) is None
    done = fl("images", "tags", STACK, "--registry", host, "--release", "--json")
    assert done.returncode == 0, done.stderr
    first = digest_of(moving)
    assert first is not None
    assert digest_of(release) == first
    assert [(e["kind"], e["digest"], e["platforms"]) for e in json.loads(done.stdout)["tags"]] == [
        ("release", first, ["linux/amd64"]),
        ("moving", first, ["linux/amd64"]),
    ]
    other = tiny("fl-test/push:2", lines='LABEL "another"="one"')
    try:
        assert fl("images", "push", other, "--registry", host, "--moving").returncode == 0
    finally:
        docker("image", "rm", "-f", other)
    assert digest_of(moving) != first
    done = fl("images", "tags", STACK, "--registry", host, "--release")
    assert done.returncode == 7
    assert "a release's name does not move" in done.stderr
    assert digest_of(release) == first


def test_two_platforms_of_one_release_stand_under_one_name(image: str, host: str) -> None:
    names = {"linux/amd64": "fl-test/push:amd", "linux/arm64": "fl-test/push:arm"}
    for platform, name in names.items():
        tiny(name, BOTH, platform, "WORKDIR /fl", org__opencontainers__image__revision="abc")
    stale = tiny("fl-test/push:stale", BOTH, "linux/amd64", org__opencontainers__image__revision="older")
    try:
        done = fl("images", "push", stale, "--registry", host, "--json")
        assert json.loads(done.stdout)["missing"] == ["linux/arm64"], done.stderr
        assert "has no linux/arm64 of this revision yet" in done.stderr
        done = fl("images", "push", names["linux/arm64"], "--registry", host, "--json")
        assert json.loads(done.stdout)["platforms"] == ["linux/arm64"], "an older revision is no part of this index"
        done = fl("images", "push", names["linux/amd64"], "--registry", host, "--json")
    finally:
        docker("image", "rm", "-f", *names.values(), stale)
    document = json.loads(done.stdout)
    assert (document["platforms"], document["missing"]) == (["linux/amd64", "linux/arm64"], [])
    assert digest_of(tags.reference(BOTH, registry=host)) == document["digest"] != document["image"]["digest"]
    done = docker("manifest", "inspect", "--insecure", tags.moving(BOTH, registry=host))
    assert {entry["platform"]["architecture"] for entry in json.loads(done.stdout)["manifests"]} == {"amd64", "arm64"}
    done = fl("images", "tags", BOTH, "--registry", host, "--release", "--json")
    assert "was named already" in done.stderr
    assert {tuple(entry["platforms"]) for entry in json.loads(done.stdout)["tags"]} == {("linux/amd64", "linux/arm64")}


def test_credentials_are_docker_s(image: str, storage: Path, tmp_path: Path) -> None:
    if shutil.which("htpasswd") is None:
        pytest.skip("htpasswd is not installed")
    users = tmp_path / "users"
    users.write_text(subprocess.run(["htpasswd", "-Bbn", "ci", "right"], capture_output=True, text=True, check=True).stdout)

    def config(host: str, password: str) -> str:
        (tmp_path / password).mkdir(exist_ok=True)
        entry = {"auth": b64encode(f"ci:{password}".encode()).decode()}
        (tmp_path / password / "config.json").write_text(json.dumps({"auths": {host: entry}}))
        return str(tmp_path / password)

    with registry(storage, users) as host:
        words = ("images", "push", image, "--registry", host)
        for password in ("wrong", "none"):
            done = fl(*words, DOCKER_CONFIG=config(host if password == "wrong" else "elsewhere:1", password))
            assert done.returncode == 7
            assert f"The registry {host} refuses" in done.stderr
            assert f"docker login {host}" in done.stderr
            assert "Trying again" not in done.stderr
        done = fl(*words, "--json", DOCKER_CONFIG=config(host, "right"))
        assert done.returncode == 0, done.stderr
        assert "right" not in done.stdout + done.stderr
        forget(host)


def test_a_line_that_breaks_twice_does_not_stop_a_push(image: str, host: str) -> None:
    with faulty(host, "reset", 300, faults=2) as broken:
        done = fl("images", "push", image, "--registry", broken, "--json")
        forget(broken)
    assert done.returncode == 0, done.stderr
    assert digest_of(tags.reference(STACK, registry=host)) == json.loads(done.stdout)["digest"]


def test_a_registry_that_falls_silent_is_given_up(image: str, host: str) -> None:
    begin = time.monotonic()
    with faulty(host, "stall", 300) as silent:
        done = fl("images", "push", image, "--registry", silent, "--timeout", "2", "--retries", "1", "--json")
        forget(silent)
    assert time.monotonic() - begin < 30
    assert done.returncode == 7
    error = json.loads(done.stdout)["error"]
    assert "No byte of" in error["message"] and "for 2 s" in error["message"] and "(2 tries)" in error["message"]
    assert "Trying again in 2 s" in done.stderr
    assert digest_of(tags.reference(STACK, registry=host)) is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_push_moves_no_name(image: str, host: str, number: signal.Signals, code: int) -> None:
    with faulty(host, "stall", 300) as silent:
        command = [sys.executable, "-m", "fl", "images", "push", image, "--registry", silent]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip().startswith("pushing "):
                break
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert "the push was" in said
    assert docker("image", "inspect", tags.reference(STACK, registry=silent)).returncode != 0
    assert digest_of(tags.moving(STACK, registry=host)) is None


def test_a_layer_that_rotted_in_the_registry_is_found(image: str, host: str, storage: Path) -> None:
    words = ("images", "push", image, "--registry", host, "--read-back")
    assert fl(*words).returncode == 0
    manifest = json.loads(docker("manifest", "inspect", "--insecure", tags.reference(STACK, registry=host)).stdout)
    layer = manifest["layers"][0]["digest"]
    flip(storage, layer)
    done = fl(*words)
    assert done.returncode == 7
    assert f"layer {layer} is damaged" in done.stderr
    assert "DELETE" in done.stderr


def test_verify_pulls_what_is_not_here_and_a_damaged_layer_is_told(host: str, storage: Path, tmp_path: Path) -> None:
    """The image has a layer of its own that the builder's cache does not hold."""
    need_docker()
    (tmp_path / "data").write_bytes(os.urandom(1 << 20))
    container = docker("create", "flbox:1", "true").stdout.strip()
    name = tags.reference(STACK, registry=host)
    label = f"LABEL fl.stack={STACK} fl.flavor=train fl.version={__version__}"
    assert docker("cp", str(tmp_path / "data"), f"{container}:/data").returncode == 0
    assert docker("commit", "--change", label, container, name).returncode == 0
    docker("rm", container)
    assert fl("images", "push", name, "--registry", host).returncode == 0
    layer = json.loads(docker("manifest", "inspect", "--insecure", name).stdout)["layers"][-1]["digest"]
    docker("image", "rm", "-f", name)
    flip(storage, layer)
    done = fl("images", "verify", name)
    assert done.returncode == 7
    assert "arrived damaged" in done.stderr
    assert docker("image", "inspect", name).returncode != 0


def test_a_full_disk_of_the_registry_is_named_at_once(image: str, storage: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(storage)], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with registry(storage) as host:
            begin = time.monotonic()
            done = fl("images", "push", image, "--registry", host)
            forget(host)
    finally:
        subprocess.run(["umount", str(storage)], check=True)
    assert done.returncode == 7
    assert f"The disk of the registry {host} is full" in done.stderr
    assert time.monotonic() - begin < 30


def test_what_may_not_go_out_under_a_stack_s_name(image: str, host: str) -> None:
    other = tiny("fl-test/push:old", fl__version="0.0.1")
    try:
        done = fl("images", "push", other, "--registry", host)
    finally:
        docker("image", "rm", "-f", other)
    assert done.returncode == 7
    assert f"fl.version is 0.0.1, not {__version__}" in done.stderr
    done = fl("images", "push", "flbox:1", "--registry", host)
    assert done.returncode == 7
    assert "has no label fl.stack" in done.stderr
    done = fl("images", "push", "cpu-torch213", "--registry", "127.0.0.1:1", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert done.returncode == 6


def test_a_registry_that_is_not_there(image: str) -> None:
    name = tags.reference(STACK, registry="127.0.0.1:1")
    done = fl("images", "push", image, "--registry", "127.0.0.1:1", "--retries", "0")
    assert docker("image", "inspect", name).returncode != 0, "a push that failed leaves no name behind"
    docker("tag", BOX, name)
    again = fl("images", "push", image, "--registry", "127.0.0.1:1", "--retries", "0")
    named = docker("image", "inspect", "--format", "{{.Id}}", name, BOX).stdout.split()
    forget("127.0.0.1:1")
    assert again.returncode == 7
    assert named[0] == named[1], "and takes none away"
    assert done.returncode == 7
    assert "connection refused" in done.stderr
    done = fl("images", "tags", STACK, "--registry", "127.0.0.1:1")
    assert done.returncode == 7
    assert "cannot be reached" in done.stderr


def test_without_a_registry_names_are_listed_and_a_push_is_refused(image: str) -> None:
    done = fl("images", "tags", STACK, "--json")
    assert [entry["name"] for entry in json.loads(done.stdout)["tags"]] == [tags.reference(STACK), tags.moving(STACK)]
    done = fl("images", "push", image)
    assert done.returncode == 2
    assert "no registry is configured" in done.stderr
