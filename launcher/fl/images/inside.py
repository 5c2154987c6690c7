"""`python -m fl.images.inside`: what an image of ours holds, told by itself as one JSON document. Run by `fl images verify`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fl.images import lock

LOCK: Final = Path("/opt/fl/lock.txt")
_EMPTY: Final = (
    "/srv", "/mnt", "/media", "/tmp", "/usr/src", "/run/secrets", "/var/cache/apt/archives", "/var/lib/apt/lists",
    "/root/.cache", "/home/fl/.cache",
)  # fmt: skip
"""Folders where a build leaves things behind."""
_NEEDS_DEVICE: Final = frozenset({"torch-npu"})
"""Cannot be imported without the vendor's driver, which comes from the host."""
_ROWS: Final = 8


def differences(text: str) -> list[str]:
    """Packages whose installed version is not the lock's."""
    found = []
    for name, wanted in lock.parse(text).items():
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            have = "absent"
        if have != wanted:
            found.append(f"{name}: the lock says {wanted}, installed is {have}")
    return found


def _imports(modules: Sequence[str]) -> str | None:
    """The last words of a process that imports these modules; None where it could."""
    done = subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]


def import_failures(names: Sequence[str]) -> list[str]:
    """Modules of distributions that cannot be imported: all in one process, and one by one where that failed."""
    tops: dict[str, list[str]] = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            tops.setdefault(lock.normalize(owner), []).append(module)
    modules = []
    for name in sorted({lock.normalize(one) for one in names} - _NEEDS_DEVICE):
        own, wanted = sorted(tops.get(name, [])), name.replace("-", "_")
        modules += [wanted] if wanted in own else own[:1]
    if not modules or _imports(modules) is None:
        return []
    return [f"import {module}: {words}" for module in modules if (words := _imports([module])) is not None]


def left_behind() -> list[str]:
    """Files that no image should carry."""
    found = []
    for folder in _EMPTY:
        try:
            names = [path.name for path in Path(folder).iterdir() if path.name not in {"partial", "lock"}]
        except OSError:
            continue
        found += [f"{folder}/{name}" for name in sorted(names)]
    return found


def package_problems() -> list[str]:
    """What `uv pip check` finds."""
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "check", "--no-config", "--no-cache", "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [line for line in done.stderr.splitlines() if line.strip()]


def tiny_run() -> list[str]:
    """Two steps of a random model on eight rows, through the shared trainer. Gives what went wrong."""
    from fl_trainers.config import SCHEMA, Config

    with tempfile.TemporaryDirectory(prefix="fl-verify-") as name:
        folder = Path(name)
        rows = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}"} for number in range(_ROWS)]
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        config = Config.model_validate({
            "schema": SCHEMA,
            "run": {"name": "verify", "lane": "cpu", "stack": "verify", "events": str(folder / "events.jsonl")},
            "model": {"name": "builtin/tiny-qwen3", "path": "builtin/tiny-qwen3", "kind": "tiny"},
            "data": {"train": [{"name": "rows", "source": "file", "path": str(folder / "rows.json")}], "cutoff_len": 64},
            "method": {"stage": "sft", "finetuning_type": "lora"},
            "training": {"output_dir": str(folder / "out"), "plot_loss": False, "arguments": {"max_steps": 2}},
        })  # fmt: skip
        config.write(folder / "config.json")
        command = [sys.executable, "-m", "fl_trainers", str(folder / "config.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode != 0:
            return [f"a run of two steps failed ({done.returncode})", *(done.stdout + done.stderr).strip().splitlines()[-5:]]
        steps = [line for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines() if '"step"' in line]
        return [] if steps else ["a run of two steps told no step"]


def facts(names: Sequence[str]) -> dict[str, Any]:
    """All of it. `names`: distributions that the row pins."""
    text = LOCK.read_text(encoding="utf-8")
    left = left_behind()  # before the imports below leave things of their own
    return {
        "python": ".".join(str(part) for part in sys.version_info[:2]),
        "lock_sha256": lock.sha256(LOCK),
        "uid": os.getuid(),
        "environment": dict(os.environ),
        "differences": differences(text),
        "packages": package_problems(),
        "imports": import_failures(names),
        "left_behind": left,
        "writable_home": os.access(Path.home(), os.W_OK),
        "run": tiny_run(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts(sys.argv[1:])) + "\n")
