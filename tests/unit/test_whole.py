"""Files that belong together are written whole or not at all: a full disk, a place that is none, Ctrl-C between them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl import matrix_update, paths, whole
from fl.cli import main
from fl.errors import ImageError, MatrixError
from fl.images import lock

SMALL = 4096


@pytest.fixture
def files(tmp_path: Path) -> dict[Path, str]:
    """Two that are there, with what they shall become."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    return {tmp_path / "a": "new", tmp_path / "b": "x" * 3 * SMALL}


def listed(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def no_room() -> None:
    """No file of this process may become larger: what a full disk does, without one."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def full() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    no_room()
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_all_are_replaced(files: dict[Path, str], tmp_path: Path) -> None:
    assert whole.write(files, MatrixError, "again") == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert listed(tmp_path) == {"a": "new", "b": "x" * 3 * SMALL}


def test_a_full_disk_leaves_every_file_as_it_was(files: dict[Path, str], tmp_path: Path, full: None) -> None:
    with pytest.raises(MatrixError, match=r"b cannot be written: File too large; nothing was changed") as caught:
        whole.write(files, MatrixError, "again")
    assert caught.value.remedy == f"df -h {tmp_path}\nagain"
    assert listed(tmp_path) == {"a": "old", "b": "old"}


def test_an_interruption_leaves_every_file_as_it_was(files: dict[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def interrupted(self: Path, text: str, encoding: str | None = None) -> int:
        write(self, text[:5], encoding)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        whole.write(files, MatrixError, "again")
    assert listed(tmp_path) == {"a": "old", "b": "old"}


def test_a_lock_that_cannot_be_written_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "images/cpu").mkdir(parents=True)
    (tmp_path / "images/cpu/locks").write_text("a file where a folder belongs")
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    from fl import matrix

    with pytest.raises(MatrixError, match=r"cpu-torch213\.train\.linux-amd64\.txt cannot be written") as caught:
        lock.write(matrix.load().stack("cpu-torch213"), "train", "linux/amd64", "text")
    assert caught.value.exit_code == 8


def test_a_matrix_whose_locks_cannot_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl import matrix

    row = matrix.load().stack("cpu-torch213")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "matrix.yaml").write_text("old")
    (tmp_path / "images/cpu").mkdir(parents=True)
    (tmp_path / "images/cpu/locks").write_text("a file where a folder belongs")
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(paths, "MATRIX", tmp_path / "matrix.yaml")
    change = matrix_update.LockChange(row, "train", "linux/amd64", None, "new")
    with pytest.raises(MatrixError, match="nothing was changed"):
        matrix_update.write_matrix("new", [change])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "matrix.yaml", "pyproject.toml"]
    assert (tmp_path / "matrix.yaml").read_text() == "old"
    (tmp_path / "images/cpu/locks").unlink()
    assert matrix_update.write_matrix("new", [change])[0] == str(tmp_path / "matrix.yaml")
    assert (tmp_path / "images/cpu/locks/cpu-torch213.train.linux-amd64.txt").read_text() == "new"


def test_dockerfiles_on_a_full_disk(tmp_path: Path) -> None:
    """A real process, whose files may not become as large as a Dockerfile is."""
    target = tmp_path / "out/cpu/cpu-torch213.train.Dockerfile"
    command = [sys.executable, "-m", "fl", "images", "render", "cpu-torch213", "--output", str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    good = target.read_text()
    assert len(good) > SMALL
    target.write_text("what was there")
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=no_room)
    assert done.returncode == ImageError.exit_code, done.stderr
    assert f"{target} cannot be written: File too large" in done.stderr and "try: df -h" in done.stderr
    assert {file.name: file.read_text() for file in target.parent.iterdir()} == {target.name: "what was there"}


def test_rendering_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["images", "render", "cpu-torch213", "xpu-torch212", "--json", "--output", str(tmp_path)])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (raised.value.code, document["schema"], len(document["dockerfiles"])) == (0, 1, 2)
    first, second = document["dockerfiles"]
    assert (first["stack"], first["lane"], first["flavor"], first["locks"]) == ("cpu-torch213", "cpu", "train", {"linux/amd64": "complete"})
    assert Path(first["file"]).read_text() == first["text"]
    assert second["locks"] == {"linux/amd64": "partial"}
    assert "the lock of xpu-torch212 for linux/amd64 is partial" in captured.err
