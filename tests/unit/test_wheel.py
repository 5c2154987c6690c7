"""Our own code as a wheel: the same bytes every time, and one that installs."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from fl import __version__, paths, wheel
from fl.errors import EngineError


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.pack(tmp_path_factory.mktemp("wheel"))


def test_two_packings_are_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    again = wheel.pack(tmp_path)
    assert again.name == packed.name == f"fl-{__version__}-py3-none-any.whl"
    assert again.read_bytes() == packed.read_bytes()


def test_time_stamps_modes_and_compression_are_fixed(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_it_holds_both_packages_and_the_data(packed: Path) -> None:
    names = set(zipfile.ZipFile(packed).namelist())
    assert {"fl_trainers/data/chat_formats.yaml", "fl_trainers/data/tool_formats.yaml"} <= names
    assert {"fl/cli.py", "fl_trainers/config.py", "fl/_data/matrix.yaml", "fl/_data/images/common/base.j2"} <= names
    assert any(name.startswith("fl/_data/images/cpu/locks/cpu-torch213.train.linux-amd64") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or "/." in name]


def test_every_file_stands_in_record_with_its_hash(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        rows = list(csv.reader(archive.read(f"fl-{__version__}.dist-info/RECORD").decode().splitlines()))
        recorded = {name: (digest, size) for name, digest, size in rows}
        assert recorded.keys() == set(archive.namelist())
        for name in archive.namelist():
            if name.endswith("RECORD"):
                continue
            data = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert recorded[name] == (f"sha256={digest}", str(len(data)))


def test_the_metadata_agree_with_the_project_file(packed: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    project = paths.IMAGES.parent / "pyproject.toml"
    if not project.is_file():
        pytest.skip("not a checkout")
    told = tomllib.loads(project.read_text())["project"]
    with zipfile.ZipFile(packed) as archive:
        text = archive.read(f"fl-{__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"fl-{__version__}.dist-info/entry_points.txt").decode()
    required = [line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    assert sorted(required) == sorted(line.lower() for line in told["dependencies"])
    assert f"Requires-Python: {told['requires-python']}" in text
    assert scripts == "[console_scripts]\n" + "".join(f"{name} = {target}\n" for name, target in told["scripts"].items())


def test_it_installs_and_its_data_are_found_from_anywhere(packed: Path, tmp_path: Path) -> None:
    """uv installs it without dependencies; the installed fl reads its own matrix and packs the very same code again."""
    target = tmp_path / "site"
    command = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--no-deps", "--no-index", "--offline", "--target", str(target)]
    done = subprocess.run([*command, "--python", sys.executable, str(packed)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = "from pathlib import Path; from fl import paths, wheel; print(paths.MATRIX, wheel.code_sha256(), wheel.pack(Path('again')))"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    where, digest, again = told.stdout.split()
    assert where == str(target / "fl" / "_data" / "matrix.yaml")
    assert digest == wheel.code_sha256()
    assert (tmp_path / again).read_bytes() == packed.read_bytes()


def test_the_hash_follows_the_trainer_and_not_what_tools_leave_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fl_trainers"
    (package / "recipes").mkdir(parents=True)
    (package / "__init__.py").write_text("A = 1\n")
    monkeypatch.setattr(paths, "trainer_code", lambda: package)
    first = wheel.code_sha256()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"x")
    (package / "recipes" / "quickstart.yaml").write_text("stage: sft\n")
    assert wheel.code_sha256() == first
    (package / "__init__.py").write_text("A = 2\n")
    assert wheel.code_sha256() != first


def test_unpacked_code_is_the_trainer_alone(tmp_path: Path) -> None:
    folder = wheel.unpack_code(tmp_path)
    assert folder == tmp_path / "code" / wheel.code_sha256()[:16]
    assert [path.name for path in folder.iterdir()] == ["fl_trainers"]
    assert (folder / "fl_trainers" / "config.py").read_bytes() == (paths.trainer_code() / "config.py").read_bytes()
    assert wheel.unpack_code(tmp_path) == folder


def test_a_changed_or_half_written_folder_is_made_again(tmp_path: Path) -> None:
    folder = wheel.unpack_code(tmp_path)
    config = folder / "fl_trainers" / "config.py"
    good = config.read_bytes()
    config.write_bytes(b"broken")
    (folder / "fl_trainers" / "__init__.py").unlink()
    assert wheel.unpack_code(tmp_path) == folder
    assert config.read_bytes() == good
    assert [path.name for path in (tmp_path / "code").iterdir()] == [folder.name]


def test_many_at_once_end_with_one_folder(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(wheel.unpack_code(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {tmp_path / "code" / wheel.code_sha256()[:16]}
    assert [path.name for path in (tmp_path / "code").iterdir()] == [found[0].name]


def test_no_metadata_anywhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    monkeypatch.setattr(paths, "MATRIX", tmp_path / "matrix.yaml")
    with pytest.raises(EngineError, match="what fl needs is told neither"):
        wheel.requirements()
