"""CDI specifications: which device names a container engine can resolve, stale files left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KNOWN_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")


def devices(directories: Iterable[str]) -> dict[str, frozenset[str]]:
    """CDI kind → device names of every fresh specification in the folders. Unreadable and malformed files are left out."""
    found: dict[str, set[str]] = {}
    for directory in directories:
        for path in sorted(_files(Path(directory))):
            spec = _read(path)
            kind = spec.get("kind")
            if isinstance(kind, str):
                found.setdefault(kind, set()).update(_fresh(spec))
    return {kind: frozenset(names) for kind, names in found.items() if names}


def _files(directory: Path) -> list[Path]:
    try:
        return [p for p in directory.iterdir() if p.suffix in (".yaml", ".yml", ".json")]
    except OSError:
        return []


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _fresh(spec: Mapping[str, Any]) -> list[str]:
    """Names of the devices whose host files all exist: after a driver upgrade an old spec still names the libraries that went away."""
    if not _exists(spec.get("containerEdits")):
        return []
    entries = spec.get("devices")
    listed = [d for d in entries if isinstance(d, dict)] if isinstance(entries, list) else []
    return [str(d["name"]) for d in listed if "name" in d and _exists(d.get("containerEdits"))]


def _exists(edits: object) -> bool:
    if not isinstance(edits, dict):
        return True
    paths = [m.get("hostPath") for m in _mappings(edits.get("mounts"))]
    paths += [n.get("hostPath") or n.get("path") for n in _mappings(edits.get("deviceNodes"))]
    return all(Path(p).exists() for p in paths if isinstance(p, str))


def _mappings(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []
