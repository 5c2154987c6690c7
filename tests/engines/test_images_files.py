"""`fl images save`, `load` and `diff` on a real docker engine."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_tools import docker, fl, need_docker, tiny

pytestmark = pytest.mark.engine
NAME = "fl-test/archive:1"


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    need_docker()


@pytest.fixture
def image() -> Iterator[str]:
    yield tiny(NAME)
    docker("image", "rm", "-f", NAME)


@pytest.mark.parametrize("name", ["image.tar", "image.tar.gz"])
def test_what_was_saved_comes_back_as_the_same_image(name: str, image: str, tmp_path: Path) -> None:
    before = json.loads(docker("image", "inspect", image).stdout)[0]
    done = fl("images", "save", image, "--output", str(tmp_path / name), "--json")
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    data = (tmp_path / name).read_bytes()
    assert (saved["size"], saved["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (data[:2] == b"\x1f\x8b") is name.endswith(".gz")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    docker("image", "rm", "-f", image)
    done = fl("images", "load", str(tmp_path / name), "--json")
    assert done.returncode == 0, done.stderr
    (loaded,) = json.loads(done.stdout)["images"]
    assert (loaded["names"], loaded["stack"]) == ([NAME], "cpu-torch213")
    after = json.loads(docker("image", "inspect", image).stdout)[0]
    assert (after["Id"], after["RootFS"]) == (before["Id"], before["RootFS"])


def test_a_damaged_file_reaches_no_daemon(image: str, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    assert fl("images", "save", image, "--output", str(file)).returncode == 0
    docker("image", "rm", "-f", image)
    whole = file.read_bytes()
    middle = len(whole) // 2
    for broken in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], gzip.compress(whole[:middle], 1)):
        file.write_bytes(broken)
        done = fl("images", "load", str(file), "--json")
        assert done.returncode == 7
        assert "is damaged" in json.loads(done.stdout)["error"]["message"]
        assert docker("image", "inspect", image).returncode != 0


def test_a_full_disk_leaves_nothing_behind(image: str, tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        done = fl("images", "save", image, "--output", str(tmp_path / "image.tar"))
        assert done.returncode == 7
        assert f"{tmp_path} has 0.0 GB free" in done.stderr
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_behind(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    from fl.errors import ImageError
    from fl.images import archive

    monkeypatch.setattr(archive, "room", lambda *_: None)
    try:
        with pytest.raises(ImageError, match="cannot be written: No space left on device"):
            archive.save([image], tmp_path / "image.tar", lambda line: None)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_is_not_there_cannot_be_saved(tmp_path: Path) -> None:
    done = fl("images", "save", "fl-test/absent:1", "--output", str(tmp_path / "a.tar"))
    assert done.returncode == 7
    assert "fl-test/absent:1 is not on this machine" in done.stderr
    done = fl("images", "load", str(tmp_path / "a.tar"))
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_two_images_are_compared_without_starting_them(image: str, tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("trl==1.0 --hash=sha256:0\nnew==2 --hash=sha256:0\n")
    (tmp_path / "old.txt").write_text("trl==0.9 --hash=sha256:0\n")
    (tmp_path / "status").write_text("Package: gcc\nStatus: install ok installed\nVersion: 12\n")
    made = []
    for name, locked in (("fl-test/archive:old", "old.txt"), ("fl-test/archive:new", "lock.txt")):
        text = f"FROM {image}\nCOPY {locked} /opt/fl/lock.txt\nCOPY status /var/lib/dpkg/status\n"
        (tmp_path / "Dockerfile").write_text(text)
        assert docker("build", "-q", "-t", name, str(tmp_path)).returncode == 0
        made.append(name)
    try:
        done = fl("images", "diff", *made, "--json")
    finally:
        docker("image", "rm", "-f", *made)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["from"]["packages_from"] == "lock"
    assert document["packages"] == [{"name": "new", "from": None, "to": "2"}, {"name": "trl", "from": "0.9", "to": "1.0"}]
    assert document["system_packages"] == []
    assert {entry["step"].split()[0] for entry in document["layers"]} == {"COPY"}


def test_an_image_without_packages_cannot_be_compared() -> None:
    done = fl("images", "diff", "flbox:1", "flbox:1", **{key: os.environ[key] for key in ("PATH",)})
    assert done.returncode == 7
    assert "neither a Python that answers nor /opt/fl/lock.txt" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_verification_leaves_no_container(number: signal.Signals, code: int) -> None:
    """What is asked inside the image takes for ever here."""
    slow = tiny("fl-test/archive:slow", lines="RUN printf '#!/bin/sh\\nexec sleep 600\\n' > /bin/python && chmod 755 /bin/python")
    process = subprocess.Popen([sys.executable, "-m", "fl", "images", "verify", slow], stderr=subprocess.PIPE, text=True)

    def containers() -> list[str]:
        return docker("ps", "--all", "--quiet", "--filter", f"name=fl-verify-{process.pid}-").stdout.split()

    end = time.monotonic() + 120
    while not containers():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1]
    left = containers()
    docker("image", "rm", "-f", slow)
    assert (process.returncode, "the verification was" in said, left) == (code, True, []), said


@pytest.mark.parametrize("words", ["save IMAGE --output FILE", "load FILE", "sbom IMAGE", "diff IMAGE IMAGE", "verify IMAGE"])
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("PATH", "/nonexistent", "there is no `docker` command on PATH"), ("DOCKER_HOST", "unix:///nonexistent", "No Docker daemon")],
)
def test_without_docker_it_is_an_engine_error(image: str, words: str, variable: str, value: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file.tar").write_bytes(b"")
    told = [image if word == "IMAGE" else str(tmp_path / "file.tar") if word == "FILE" else word for word in words.split()]
    done = fl("images", *told, **{variable: value})
    assert (done.returncode, said in done.stderr) == (6, True), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["file.tar"]
