"""Our own code as a wheel: packed from what is installed (a wheel, an editable checkout), the same bytes every time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from fl import __version__, paths
from fl.errors import EngineError

NAME: Final = f"fl-{__version__}-py3-none-any.whl"
_DIST_INFO: Final = f"fl-{__version__}.dist-info"
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: fl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_ENTRY_POINTS: Final = "[console_scripts]\nfl = fl.cli:main\n"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def _files(root: Path) -> dict[str, Path]:
    """Relative name → file, without what tools leave behind (caches, byte code, hidden files)."""
    found = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name != "__pycache__" and not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and not name.endswith((".pyc", "~")):
                path = Path(folder, name)
                found[path.relative_to(root).as_posix()] = path
    return found


def _trainer_files() -> dict[str, Path]:
    """The trainer without the shipped recipes: the launcher reads those, the trainer never does."""
    return {name: path for name, path in _files(paths.trainer_code()).items() if not name.startswith("recipes/")}


def _content() -> dict[str, Path]:
    """Name in the wheel → file, for both packages and the data."""
    content = {f"fl/{name}": path for name, path in _files(paths.LAUNCHER_CODE).items()}
    content |= {f"fl_trainers/{name}": path for name, path in _files(paths.trainer_code()).items()}
    content["fl/_data/matrix.yaml"] = paths.MATRIX
    return content | {f"fl/_data/images/{name}": path for name, path in _files(paths.IMAGES).items()}


def _digest(files: Mapping[str, Path]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def code_sha256() -> str:
    """Hash of the trainer's code, the same for a checkout and for an installed wheel."""
    return _digest(_trainer_files())


def sha256() -> str:
    """Hash of all that the wheel holds, without packing it."""
    return hashlib.sha256((_digest(_content()) + _metadata()).encode()).hexdigest()


def requirements() -> list[str]:
    """What fl itself needs at run time, as normalized requirements: of the installed distribution, else of the checkout's project file."""
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        lines: Iterable[str] = metadata.requires("fl") or ()
    except metadata.PackageNotFoundError:
        lines = _project_requirements(paths.MATRIX.with_name("pyproject.toml"))
    parsed = [Requirement(line) for line in lines]
    for one in parsed:
        one.name = canonicalize_name(one.name)  # as build backends write it
    return sorted(str(one) for one in parsed if "extra" not in str(one.marker or ""))


def _project_requirements(project: Path) -> list[str]:
    try:
        import tomllib

        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    except (ImportError, OSError) as error:
        raise EngineError(f"what fl needs is told neither by an installed distribution nor by {project}", "pip install fl") from error


def _metadata() -> str:
    head = ["Metadata-Version: 2.1", "Name: fl", f"Version: {__version__}", "License: Apache-2.0", "Requires-Python: >=3.10"]
    return "\n".join([*head, *(f"Requires-Dist: {line}" for line in requirements())]) + "\n"


def _record_line(name: str, data: bytes) -> str:
    digest = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"


def pack(folder: Path) -> Path:
    """Writes the wheel into `folder` and gives its path. Stored, not compressed: the bytes do not depend on a zlib version."""
    content = {name: path.read_bytes() for name, path in sorted(_content().items())}
    content[f"{_DIST_INFO}/METADATA"] = _metadata().encode()
    content[f"{_DIST_INFO}/WHEEL"] = _WHEEL.encode()
    content[f"{_DIST_INFO}/entry_points.txt"] = _ENTRY_POINTS.encode()
    record = [_record_line(name, data) for name, data in content.items()]
    content[f"{_DIST_INFO}/RECORD"] = ("\n".join([*record, f"{_DIST_INFO}/RECORD,,"]) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / NAME
    part = folder / f".{NAME}.{os.getpid()}"
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    part.replace(target)
    return target


def unpack_code(cache: Path) -> Path:
    """A folder `cache/code/SHA16` that holds the package fl_trainers and nothing else: PYTHONPATH of a host environment.

    Made once, whole or not at all; a folder whose content was changed since is made again. Several at once wait for each other.
    """
    files = _trainer_files()
    digest = _digest(files)
    target = cache / "code" / digest[:16]
    if _is_whole(target, digest):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (cache / "code.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(target, digest):
            _write_code(files, target)
    return target


def _is_whole(target: Path, digest: str) -> bool:
    package = target / "fl_trainers"
    return package.is_dir() and _digest(_files(package)) == digest


def _write_code(files: Mapping[str, Path], target: Path) -> None:
    """Beside the target, then renamed; what was there goes first."""
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    for name, path in files.items():
        copy = part / "fl_trainers" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    part.chmod(0o755)
    if target.exists():
        stale = Path(tempfile.mkdtemp(prefix=".stale.", dir=target.parent))
        target.rename(stale / target.name)
        shutil.rmtree(stale, ignore_errors=True)
    part.rename(target)
