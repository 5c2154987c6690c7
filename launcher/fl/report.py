"""What `fl env` tells: this installation, the machine, the engines. Nothing in it names the user, the host or a secret."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fl import __version__, engines, paths
from fl.errors import EngineError, FlError

_PACKAGES: Final = ("click", "docker", "jinja2", "packaging", "pydantic", "PyYAML", "rich", "uv")
_SHOWN: Final = re.compile(
    r"(FL_|XDG_|OMP_|CUDA_|ROCR_|HIP_|HSA_|ASCEND_|ZE_|ONEAPI_|NCCL_|HCCL_|SLURM_JOB|HF_HOME$|HF_HUB_|HF_ENDPOINT$|DOCKER_CONTEXT$|TMPDIR$|LANG$)"
)
_SECRET: Final = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|USER|HOST|NODELIST|NAME|ADDR", re.I)
_PRESENT: Final = ("DOCKER_HOST", "HTTP_PROXY", "HTTPS_PROXY", "HF_TOKEN", "PIP_INDEX_URL", "UV_INDEX_URL", "LD_LIBRARY_PATH", "PYTHONPATH")


def gather() -> dict[str, Any]:
    """The document of `fl env --json`, schema 1."""
    document = {
        "schema": 1,
        "fl": {"version": __version__, "folder": str(paths.LAUNCHER_CODE), "matrix_sha256": _matrix()},
        "python": {"version": platform.python_version(), "executable": sys.executable, "others": _pythons()},
        "system": {"os": _os_name(), "kernel": platform.release(), "arch": platform.machine(), "libc": "-".join(platform.libc_ver())},
        "hardware": _hardware(),
        "engines": {name: _engine(name) for name in engines.ENGINES},
        "settings": _settings(),
        "variables": variables(os.environ),
        "caches": {name: f"{size / 1e6:.0f} MB" for name, size in cache_sizes(paths.cache_home()).items()},
        "runs": _runs(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    return {key: _anonymous(value) for key, value in document.items()}


def text(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(entry)}" for key, entry in value.items() if entry not in (None, {}, [], ""))
    if isinstance(value, list):
        return "; ".join(text(entry) for entry in value) or "none"
    return {None: "unknown", True: "yes", False: "no"}.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)


def _anonymous(value: Any) -> Any:
    """The home folder as ~, this machine's name as HOST, at any depth."""
    if isinstance(value, dict):
        return {key: _anonymous(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_anonymous(entry) for entry in value]
    if not isinstance(value, str):
        return value
    home = str(Path.home())
    if home != "/":
        value = re.sub(rf"{re.escape(home)}(?=/|$|[\s:,;])", "~", value)
    node = platform.node()
    return re.sub(rf"(?<![\w-]){re.escape(node)}(?![\w-])", "HOST", value) if len(node) > 3 else value


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that change what fl does; of those that could name a host or hold a secret only that they are set."""
    shown = {name: value for name, value in environ.items() if _SHOWN.match(name) and not _SECRET.search(name)}
    return {**dict(sorted(shown.items())), **{name: "(set, not shown)" for name in _PRESENT if environ.get(name)}}


def cache_sizes(folder: Path) -> dict[str, int]:
    """Bytes on disk of each folder in fl's cache."""
    try:
        return {entry.name: _size(Path(entry.path)) for entry in sorted(os.scandir(folder), key=lambda e: e.name) if entry.is_dir()}
    except OSError:
        return {}


def _size(folder: Path) -> int:
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total


def _engine(name: str) -> dict[str, Any]:
    facts = engines.ask(name)
    if isinstance(facts, EngineError):
        return {"answers": False, "why": facts.message}
    if name == "host":
        return {"answers": True}
    return {"answers": True, "version": facts.version, "rootless": facts.rootless, "userns_remap": facts.userns_remap,
            "nvidia_gpus": facts.nvidia_gpus, "cdi": {kind: len(names) for kind, names in facts.cdi.items()}, "selinux": facts.selinux,
            "cgroup": facts.cgroup, "same_files": facts.same_files, "hard_limits": dict(facts.hard_limits)}  # fmt: skip


def _hardware() -> dict[str, Any]:
    from fl.detect import detect, open_host
    from fl.hardware import names

    try:
        found = detect(open_host())
    except FlError as error:
        return {"error": error.message}
    return {
        "accelerators": names(found.accelerators) or "none",
        "usable": sum(1 for a in found.accelerators if a.usable),
        "drivers": {name: dict(values) for name, values in found.drivers.items()},
        "cpu": f"{found.cpu.model or 'unknown'}, {found.cpu.cores} cores, {found.cpu.memory_mib or '?'} MiB",
        "cpu_features": list(found.cpu.features),
        "problems": [f"{p.code} ({p.lane or 'host'}): {p.message}" for p in found.problems],
    }


def _settings() -> dict[str, Any]:
    from fl import settings

    try:
        loaded = settings.load()
    except FlError as error:
        return {"error": error.message}
    mirrors = [name for name in ("registry", "index", "hub", "modelscope") if getattr(loaded.mirrors, name)]
    mirrors += ["hub is ModelScope"] if loaded.mirrors.modelscope_hub else []
    return {
        "registry": loaded.registry or "not set", "ledger": loaded.ledger or "not set", "mirrors": ", ".join(mirrors) or "none",
    }  # fmt: skip


def _matrix() -> str:
    from fl import matrix

    try:
        return matrix.load().sha256
    except FlError as error:
        return f"broken: {error.message}"


def _pythons() -> dict[str, str]:
    from fl.engines.pythons import pythons

    return {version: str(path) for version, path in sorted(pythons().items())}


def _runs() -> dict[str, int]:
    from fl.run_status import list_runs

    counted: dict[str, int] = {}
    for status in list_runs():
        counted[status.state] = counted.get(status.state, 0) + 1
    return counted


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return platform.system()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
