"""Python interpreters of this machine. Found without starting any, so that a dry run can ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fl.errors import EngineError, MatrixError

IMAGE_LOCK: Final = Path("/opt/fl/lock.txt")
_IMAGE_PYTHON: Final = Path("/opt/venv/bin/python")
_NAME = re.compile(r"python(3\.[1-9]\d)$")
_FOREIGN: Final = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR", "PYTHONDONTWRITEBYTECODE",
    "VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "__PYVENV_LAUNCHER__",
)  # fmt: skip
_PROBE: Final = """
import importlib.metadata as m, json, sys
found = {}
for d in m.distributions():
    name = d.metadata["Name"] if d.metadata else None
    if name: found.setdefault(name, d.version)
print("\\n" + json.dumps({"version": "%d.%d.%d" % sys.version_info[:3], "packages": found}))
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """One package that is not as the lock says. `found` None: not installed."""

    name: str
    locked: str
    found: str | None


@dataclass(frozen=True, slots=True)
class InterpreterFacts:
    """An interpreter that the user named, beside the lock of the stack."""

    path: Path
    version: str
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """True when every package is as the lock says."""
        return not self.differences


def clean_environment(base: dict[str, str]) -> dict[str, str]:
    """The environment without what would let another Python's packages in; its virtual environment leaves PATH too."""
    environment = {k: v for k, v in base.items() if k not in _FOREIGN}
    if base.get("VIRTUAL_ENV"):
        own = str(Path(base["VIRTUAL_ENV"]) / "bin")
        environment["PATH"] = os.pathsep.join(p for p in base.get("PATH", "").split(os.pathsep) if p.rstrip("/") != own)
    environment["PYTHONNOUSERSITE"] = "1"
    return environment


def pythons() -> dict[str, Path]:
    """`3.11` → interpreter: the one that runs fl, those on PATH, uv's and pyenv's own. The first found of a version counts."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": Path(sys.executable)}
    for path in _candidates():
        match = _NAME.match(path.name) or _NAME.match(Path(os.path.realpath(path)).name)
        if match and match[1] not in found and _binary(path):
            found[match[1]] = path
    return found


def image_interpreter() -> Path | None:
    """The interpreter of the image this process runs in, when it is one of ours."""
    if not IMAGE_LOCK.is_file():
        return None
    return _IMAGE_PYTHON if _IMAGE_PYTHON.exists() else Path(sys.executable)


def _candidates() -> Iterator[Path]:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder.startswith("/"):
            yield from _list(Path(folder), "python3*")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    yield from _list(Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv/python"), "cpython-3.*/bin/python3.*")
    yield from _list(Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions", "3.*/bin/python3.*")


def _list(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern), reverse=True)
    except OSError:
        return []


def _binary(path: Path) -> bool:
    """False for scripts that stand in for an interpreter (pyenv's shims exist for versions that are not selected)."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF" and os.access(path, os.X_OK)
    except OSError:
        return False


def inspect_interpreter(path: Path, lock: Path) -> InterpreterFacts:
    """Starts the interpreter and compares its packages with the lock. EngineError when it is no usable Python."""
    if path.is_dir():
        inner = next((p for p in (path / "bin/python", path / "bin/python3") if p.exists()), None)
        raise EngineError(f"--python wants an interpreter, {path} is a folder.", f"--python {inner or 'PATH/bin/python'}")
    if not path.exists():
        raise EngineError(f"--python {path}: there is no such file.", "fl run --engine host without --python makes its own environment")
    answer = _probe(path)
    version = str(answer["version"])
    if tuple(int(p) for p in version.split(".")[:2]) < (3, 10):
        raise EngineError(f"--python {path} is Python {version}; the trainer needs 3.10 or newer.", "--python PATH of a newer Python")
    return InterpreterFacts(path, version, differences(lock_versions(lock, version), answer["packages"]))


def _probe(path: Path) -> dict[str, Any]:
    remedy = f"{path} --version shows whether it starts; without --python fl makes an environment of its own"
    try:
        # A child that reads nothing of ours: -c puts the working directory first on its path, so that is a neutral one.
        done = subprocess.run(
            [str(path), "-c", _PROBE],
            env=clean_environment(dict(os.environ)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            cwd="/",
            check=False,
        )
    except PermissionError as error:
        raise EngineError(f"--python {path} cannot be executed: permission denied.", remedy) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"--python {path} does not start: {error}", remedy) from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        answer["version"], answer["packages"]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise EngineError(f"--python {path} is no working Python (exit {done.returncode}): {said}", remedy) from error
    return dict(answer)


def lock_versions(lock: Path, python: str) -> dict[str, str]:
    """Name → version of a lock's lines that apply to this machine and Python (`3.11.7`). MatrixError for a line that is none."""
    from packaging.requirements import InvalidRequirement, Requirement

    versions: dict[str, str] = {}
    marks = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
    try:
        lines = lock.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MatrixError(f"The lock {lock} cannot be read: {error}", "fl images lock") from error
    for number, line in enumerate(lines, 1):
        text = line.split(" --hash")[0].split(" #")[0].rstrip("\\ ").strip()
        if not text or text.startswith(("#", "-")):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise MatrixError(f"The lock {lock}, line {number}, is no pinned requirement: {text}", "fl images lock") from error
        exact = next((s.version for s in requirement.specifier if s.operator == "=="), "")
        if requirement.marker is None or requirement.marker.evaluate(dict(marks)):
            versions[requirement.name] = exact
    return versions


def differences(locked: dict[str, str], found: dict[str, str]) -> tuple[Difference, ...]:
    """Locked packages that are missing or of another version. More packages than the lock names are no difference."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion

    present = {canonicalize_name(name): version for name, version in found.items()}
    result = []
    for name, version in sorted(locked.items()):
        have = present.get(canonicalize_name(name))
        try:
            same = have is not None and (not version or SpecifierSet(f"=={version}").contains(have, prereleases=True))
        except (InvalidSpecifier, InvalidVersion):
            same = have == version
        if not same:
            result.append(Difference(name, version, have))
    return tuple(result)
