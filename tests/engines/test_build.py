"""The CPU image, really built on the docker engine of this machine, and asked from inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fl import matrix as rows
from fl.errors import ImageError
from fl.images import build, context, lock, tags

pytestmark = pytest.mark.engine
STACK = "cpu-torch213"
BASE = os.environ.get("FL_TEST_BASE", "flpy:bookworm")
REFERENCE = tags.reference(STACK)


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def fl(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fl", *words], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )


@pytest.fixture(scope="module")
def base() -> str:
    if shutil.which("docker") is None or docker("version").returncode != 0:
        pytest.skip("no docker daemon answers")
    if docker("image", "inspect", BASE).returncode != 0:
        pytest.skip(f"the base image {BASE} is not on this machine (FL_TEST_BASE names another)")
    return BASE


@pytest.fixture(scope="module")
def built(base: str) -> dict[str, Any]:
    done = fl("images", "build", STACK, "--base", base, "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_build_has_both_names_and_shows_its_steps(built: dict[str, Any]) -> None:
    assert built["reference"] == REFERENCE
    for name in (REFERENCE, tags.moving(STACK)):
        assert docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip() == built["id"]
    assert built["size"] < 2.2e9


def test_nothing_changed_is_built_again_in_seconds(base: str, built: dict[str, Any]) -> None:
    begin = time.monotonic()
    done = fl("images", "build", STACK, "--base", base, "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    assert time.monotonic() - begin < 30


def test_it_works_for_a_uid_that_nobody_knows(built: dict[str, Any]) -> None:
    code = "import torch, transformers, peft, trl, getpass; print(torch.__version__, transformers.__version__, getpass.getuser())"
    done = docker("run", "--rm", "--network", "none", "--user", "12345:12345", REFERENCE, "python", "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["2.13.0+cpu", "5.24.0", "fl"]


def test_it_works_where_the_root_is_read_only(built: dict[str, Any]) -> None:
    done = docker("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", REFERENCE, "python", "-c", "import torch; print(1)")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr[-2000:]


def test_fl_itself_runs_inside(built: dict[str, Any]) -> None:
    done = docker("run", "--rm", "--network", "none", REFERENCE, "fl", "images", "list", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert STACK in {image["stack"] for image in json.loads(done.stdout)["images"]}


def test_verify_finds_nothing(built: dict[str, Any]) -> None:
    done = fl("images", "verify", REFERENCE, "--json")
    assert json.loads(done.stdout)["problems"] == []
    assert done.returncode == 0


def test_verify_finds_what_was_changed(built: dict[str, Any], tmp_path: Path) -> None:
    """A child that upgrades nothing but lies about its stack, runs as root, keeps a cache and has lost a package."""
    (tmp_path / "Dockerfile").write_text(
        f"FROM {REFERENCE}\nUSER 0:0\nLABEL fl.lock.sha256=other\nENV NVIDIA_VISIBLE_DEVICES=all\n"
        "RUN rm -rf /opt/venv/lib/python3.11/site-packages/xxhash* && touch /srv/cache\n"
    )
    assert docker("build", "-q", "-t", "fl-test:broken", str(tmp_path)).returncode == 0
    try:
        done = fl("images", "verify", "fl-test:broken", "--json")
    finally:
        docker("image", "rm", "-f", "fl-test:broken")
    assert done.returncode == ImageError.exit_code
    found = "\n".join(json.loads(done.stdout)["problems"])
    for words in (
        "label fl.lock.sha256 is other", "user is 0:0", "xxhash: the lock says", "left behind: /srv/cache", "NVIDIA_VISIBLE_DEVICES is set",
    ):  # fmt: skip
        assert words in found


def test_no_index_and_no_secret_stay_in_the_image(built: dict[str, Any]) -> None:
    told = docker("image", "inspect", REFERENCE).stdout + docker("history", "--no-trunc", REFERENCE).stdout
    assert "UV_DEFAULT_INDEX" not in told
    assert "UV_EXTRA_INDEX_URL" not in told
    assert "BEGIN CERTIFICATE" not in told


def test_a_base_that_is_not_there_is_an_image_error(base: str) -> None:
    done = fl("images", "build", STACK, "--base", "fl-test/absent:1")
    assert done.returncode == ImageError.exit_code
    assert "fl-test/absent:1" in done.stderr
    assert "--base REF" in done.stderr


def test_another_file_than_the_locked_one_stops_the_build(base: str, tmp_path: Path) -> None:
    matrix = rows.load()
    stack = matrix.stack(STACK)
    folder, folders = context.prepare(matrix, stack, "train", tmp_path, context.Site(base=base))
    full = folder / "full" / "lock.txt"
    text = full.read_text()
    old = lock.entries(text)["hjson"]
    full.write_text(text.replace(old, "hjson==3.1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"))
    with pytest.raises(ImageError) as caught:
        build._run([*build.argv(stack, folder, folders, {"FL_VERSION": "0"}, ["fl-test:never"])])
    assert "Hash mismatch for `hjson==3.1.0`" in caught.value.message or "hjson" in caught.value.message
    assert "the package index serves another file" in caught.value.remedy
    assert docker("image", "inspect", "fl-test:never").returncode != 0


def test_no_daemon_is_an_engine_error() -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker client")
    done = fl("images", "build", STACK, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert done.returncode == 6
    assert "the docker daemon does not answer" in done.stderr


def test_a_stack_without_a_lock_is_refused_before_anything_starts() -> None:
    done = fl("images", "build", "xpu-torch212", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert done.returncode == 8
    assert "xpu-torch212 has no lock" in done.stderr
