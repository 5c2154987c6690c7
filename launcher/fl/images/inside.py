"""`python -m fl.images.inside`: what an image of ours holds, told by itself as one JSON document. Run by `fl images verify`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from fl.images import lock

SCHEMA: Final = 3
"""Of the document; an image whose fl says another was made by another fl."""
LOCK: Final = Path("/opt/fl/lock.txt")
MORE: Final = Path("/opt/fl/jit.txt")
"""What the jit variant holds beside it."""
_EMPTY: Final = (
    "/srv", "/mnt", "/media", "/tmp", "/usr/src", "/run/secrets", "/var/cache/apt/archives", "/var/lib/apt/lists",
    "/root/.cache", "/home/fl/.cache",
)  # fmt: skip
"""Folders where a build leaves things behind."""
_PRIVATE: Final = (
    ".netrc", ".git-credentials", ".docker/config.json", ".config/pip/pip.conf", ".pip/pip.conf", ".config/uv/uv.toml", ".ssh/id_rsa",
    ".ssh/id_ed25519", ".aws/credentials", ".cache/huggingface/token",
)  # fmt: skip
"""Files of a home that hold credentials."""
_BUNDLED: Final = ("ensurepip", "python-wheels")
"""Folders whose wheels are part of Python itself."""
_NEEDS_DEVICE: Final = frozenset({"torch-npu", "vllm-ascend"})
"""Cannot be imported without the vendor's driver, which comes from the host."""
_ROWS: Final = 8
_LARGEST: Final = 25


def differences(text: str) -> list[str]:
    """Packages whose installed version is not the lock's: every package of the lock."""
    found = []
    for name, wanted in lock.parse(text).items():
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            have = "absent"
        if have != wanted:
            found.append(f"{name}: the lock says {wanted}, installed is {have}")
    return found


def beyond(text: str) -> list[str]:
    """Installed distributions that the lock does not have, fl itself apart."""
    have = {lock.normalize(one.metadata["Name"]): one.version for one in importlib.metadata.distributions()}
    return [f"{name} {version}" for name, version in sorted(have.items()) if name not in lock.parse(text) and name != "fl"]


_IMPORTS: Final = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}".strip().splitlines()[0]
sys.stdout.write("\\n" + json.dumps(found))
"""


def _imports(modules: Sequence[str]) -> dict[str, str] | None:
    """Module → why it cannot be imported, all in one process; None where that process did not live to tell."""
    done = subprocess.run([sys.executable, "-c", _IMPORTS, *modules], capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        return None


def import_failures(names: Sequence[str]) -> list[str]:
    """Modules of distributions that cannot be imported; each in a process of its own where one of them ends the process."""
    tops: dict[str, list[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            tops.setdefault(lock.normalize(owner), []).append(module)
    modules = []
    for name in sorted({lock.normalize(one) for one in names} - _NEEDS_DEVICE):
        own, wanted = sorted(tops.get(name, [])), name.replace("-", "_")
        modules += [wanted] if wanted in own else own[:1]
    told = _imports(modules)
    if told is None:
        told = {}
        for module in modules:
            alone = _imports([module])
            told |= {module: "ended the process"} if alone is None else alone
    return [f"import {module}: {words}" for module, words in told.items()]


def left_behind() -> list[str]:
    """Files that no image should carry: what builds leave, caches, wheels, credentials. Sees all of it as root only."""
    found = [f"{folder}/{name}" for folder in _EMPTY for name in _names(Path(folder)) if name not in {"partial", "lock"}]
    found = sorted(set(found) - packaged(Path("/var/lib/dpkg/info"))) if found else []
    homes = [Path("/root"), *(Path("/home") / name for name in _names(Path("/home")))]
    found += [str(home / name) for home in homes for name in _PRIVATE if (home / name).exists()]
    return [*found, *_wheels(Path("/"))]


def packaged(info: Path) -> frozenset[str]:
    """Every path that belongs to a Debian package: `libpython3.13-dev` has a folder in /usr/src."""
    lists = [file.read_text(encoding="utf-8", errors="replace") for file in info.glob("*.list")] if info.is_dir() else []
    return frozenset(line for text in lists for line in text.splitlines())


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _wheels(root: Path) -> Iterator[str]:
    """Wheels that were kept, on this file system only."""
    device = root.stat().st_dev
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if _same(f"{place}/{name}", device)]
        if not any(part in place for part in _BUNDLED):
            yield from (f"{place}/{name}" for name in files if name.endswith(".whl"))


def _same(path: str, device: int) -> bool:
    try:
        return os.lstat(path).st_dev == device
    except OSError:
        return False


def package_problems() -> list[str]:
    """What `uv pip check` finds."""
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "check", "--no-config", "--no-cache", "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [line for line in done.stderr.splitlines() if line.strip()]


def tiny_run() -> dict[str, Any]:
    """Two steps of a random model on eight rows, through the shared trainer: what went wrong, and what evidence needs of it."""
    from fl import wheel
    from fl_trainers.config import SCHEMA as CONFIG
    from fl_trainers.config import Config

    with tempfile.TemporaryDirectory(prefix="fl-verify-") as name:
        folder = Path(name)
        rows = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}"} for number in range(_ROWS)]
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        config = Config.model_validate({
            "schema": CONFIG,
            "run": {"name": "verify", "lane": "cpu", "stack": "verify", "events": str(folder / "events.jsonl")},
            "model": {"name": "builtin/tiny-qwen3", "path": "builtin/tiny-qwen3", "kind": "tiny"},
            "data": {"train": [{"name": "rows", "source": "file", "path": str(folder / "rows.json")}], "cutoff_len": 64},
            "method": {"stage": "sft", "finetuning_type": "lora"},
            "training": {"output_dir": str(folder / "out"), "plot_loss": False, "arguments": {"max_steps": 2, "logging_steps": 1}},
        })  # fmt: skip
        config.write(folder / "config.json")
        command = [sys.executable, "-m", "fl_trainers", str(folder / "config.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode != 0:
            found = [f"a run of two steps failed ({done.returncode})", *(done.stdout + done.stderr).strip().splitlines()[-5:]]
        else:
            found = step_problems((folder / "events.jsonl").read_text(encoding="utf-8"))
        files = [file for file in (folder / "config.json", folder / "record.json") if file.exists()]
        proof = {file.stem: file.read_text(encoding="utf-8") for file in files}
        return {"found": found, "trainer_sha256": wheel.code_sha256(), **proof}


def step_problems(events: str) -> list[str]:
    """What the events of a run of two steps lack: both steps, each with a finite loss."""
    steps = [one for one in map(json.loads, events.splitlines()) if one.get("event") == "step" and isinstance(one.get("loss"), int | float)]
    good = [one for one in steps if one["loss"] == one["loss"] and abs(one["loss"]) != float("inf")]
    numbers = sorted({int(one["step"]) for one in good})
    return [] if numbers == [1, 2] else [f"a run of two steps told finite losses of steps {numbers or 'none'}, not of 1 and 2"]


def sizes() -> list[dict[str, Any]]:
    """The largest folders and files of site-packages, NVIDIA's and others' namespaces one level deeper. Bytes on disk as they are read."""
    import sysconfig

    found: dict[str, int] = {}
    site = Path(sysconfig.get_path("purelib"))
    for entry in os.scandir(site):
        deeper = entry.is_dir(follow_symlinks=False) and not Path(entry.path, "__init__.py").exists() and ".dist-info" not in entry.name
        for part in os.scandir(entry.path) if deeper else [entry]:
            name = f"{entry.name}/{part.name}" if deeper else entry.name
            found[name] = _bytes(part)
    largest = sorted(found.items(), key=lambda item: -item[1])[:_LARGEST]
    rest = sum(found.values()) - sum(size for _, size in largest)
    return [{"kind": "package", "what": name, "bytes": size} for name, size in [*largest, ("all others", rest)]]


def _bytes(entry: os.DirEntry[str]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return entry.stat(follow_symlinks=False).st_size
    return sum(os.lstat(f"{place}/{name}").st_size for place, _, files in os.walk(entry.path) for name in files)


def facts(names: Sequence[str], train: bool) -> dict[str, Any]:
    """All of it. `names`: distributions that the row pins; `train`: whether the image is for training."""
    text = LOCK.read_text(encoding="utf-8") + (MORE.read_text(encoding="utf-8") if MORE.is_file() else "")
    took: dict[str, float] = {}

    def timed(name: str, ask: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        told = ask()
        took[name] = round(time.monotonic() - begin, 2)
        return told

    return {
        "schema": SCHEMA,
        "python": ".".join(str(part) for part in sys.version_info[:2]),
        "lock_sha256": lock.sha256(LOCK),
        "uid": os.getuid(),
        "environment": dict(os.environ),
        "differences": timed("versions", lambda: differences(text)),
        "beyond": beyond(text),
        "packages": timed("requirements", package_problems),
        "imports": timed("imports", lambda: import_failures(names)),
        "writable_home": os.access(Path.home(), os.W_OK),
        "sizes": timed("sizes", sizes),
        "run": timed("training", tiny_run) if train else None,
        "seconds": took,
    }


if __name__ == "__main__":
    words = sys.argv[1:]
    pins = [word for word in words if not word.startswith("--")]
    told = {"left_behind": left_behind()} if "--files" in words else facts(pins, "--serve" not in words)
    sys.stdout.write(json.dumps(told) + "\n")
