"""pythons.py: interpreters found without starting them; one that the user names is looked into."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fl.engines import pythons
from fl.engines.pythons import Difference
from fl.errors import EngineError, MatrixError

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_running_interpreter_is_found() -> None:
    assert pythons.pythons()[VERSION] == Path(sys.executable)


def test_scripts_that_stand_in_for_an_interpreter_are_not_interpreters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "shims/python3.98", "#!/bin/sh\nexit 127\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3.97").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:{tmp_path / 'bin'}:relative:/nowhere")
    found = pythons.pythons()
    assert "3.98" not in found
    assert found["3.97"] == tmp_path / "bin/python3.97"


def test_those_of_uv_and_pyenv_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, inner, name in (
        ("UV_PYTHON_INSTALL_DIR", "cpython-3.96.1-linux/bin", "3.96"),
        ("PYENV_ROOT", "versions/3.95.2/bin", "3.95"),
    ):
        folder = tmp_path / variable / inner
        folder.mkdir(parents=True)
        (folder / f"python{name}").symlink_to(os.path.realpath(sys.executable))
        monkeypatch.setenv(variable, str(tmp_path / variable))
    assert {"3.96", "3.95"} <= set(pythons.pythons())


def test_too_old_ones_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python3.9").symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "3.9" not in pythons.pythons()


def test_differences_from_a_lock(tmp_path: Path) -> None:
    import click

    installed = __import__("importlib.metadata").metadata.version("click")
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "# a comment\n--find-links https://example.org\n"
        f"click=={installed} \\\n    --hash=sha256:00\n"
        "Not_There==1.2+cpu --hash=sha256:11 # via x\n"
        "pytest==0.1\n"
        "elsewhere==1 ; sys_platform == 'win32'\n"
    )
    facts = pythons.inspect_interpreter(Path(sys.executable), lock)
    assert click is not None
    assert facts.version.startswith(VERSION)
    assert not facts.ok
    assert [(d.name, d.locked, d.found is None) for d in facts.differences] == [("Not_There", "1.2+cpu", True), ("pytest", "0.1", False)]


@pytest.mark.parametrize(
    ("locked", "found", "differs"),
    [
        ({"torch": "2.13.0+cpu"}, {"torch": "2.13.0+cpu"}, False),
        ({"torch": "2.13.0+cpu"}, {"torch": "2.13.0"}, True),
        ({"torch": "2.13.0"}, {"torch": "2.13.0+cu130"}, False),
        ({"huggingface-hub": "1.0"}, {"huggingface_hub": "1.0"}, False),
        ({"a": "1.0"}, {"a": "1"}, False),
        ({"a": "1.0"}, {"a": "not a version"}, True),
    ],
)
def test_versions_are_compared_as_versions(locked: dict[str, str], found: dict[str, str], differs: bool) -> None:
    try:
        assert bool(pythons.differences(locked, found)) is differs
    except ValueError:
        pytest.fail("a version that is none must be a difference")


def test_a_missing_package_is_told_with_what_was_locked() -> None:
    assert pythons.differences({"a": "1"}, {}) == (Difference("a", "1", None),)


def test_no_file_folder_and_no_python(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("")
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/python").symlink_to(sys.executable)
    cases = {
        tmp_path / "none": "no such file",
        tmp_path / "env": "is a folder",
        script(tmp_path / "fails", "#!/bin/sh\necho broken >&2; exit 127\n"): r"exit 127\): broken",
        script(tmp_path / "silent", "#!/bin/sh\n"): "no working Python",
        script(tmp_path / "list", "#!/bin/sh\necho '[]'\n"): "no working Python",
        script(tmp_path / "old", """#!/bin/sh\necho '{"version": "3.8.1", "packages": {}}'\n"""): r"3\.8\.1",
    }
    plain = tmp_path / "plain"
    plain.write_text("x")
    plain.chmod(0o644)
    for path, said in {**cases, plain: "permission denied"}.items():
        with pytest.raises(EngineError, match=said) as raised:
            pythons.inspect_interpreter(path, lock)
        assert raised.value.remedy


def test_the_folder_of_an_environment_names_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    with pytest.raises(EngineError) as raised:
        pythons.inspect_interpreter(tmp_path, tmp_path / "lock.txt")
    assert raised.value.remedy == f"--python {tmp_path}/bin/python"


def test_a_lock_with_a_line_that_pins_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("six==1.0\n???\n")
    with pytest.raises(MatrixError, match="line 2"):
        pythons.lock_versions(lock, "3.11.7")


def test_only_inside_an_image_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythons, "IMAGE_LOCK", tmp_path / "lock.txt")
    assert pythons.image_interpreter() is None
    (tmp_path / "lock.txt").write_text("")
    assert pythons.image_interpreter() is not None


def test_no_other_environment_leaks_in() -> None:
    base = {"PATH": "/v/bin:/usr/bin", "VIRTUAL_ENV": "/v", "PYTHONPATH": "/x", "PYTHONHOME": "/y", "HOME": "/h", "CONDA_PREFIX": "/c"}
    assert pythons.clean_environment(base) == {"PATH": "/usr/bin", "HOME": "/h", "PYTHONNOUSERSITE": "1"}
