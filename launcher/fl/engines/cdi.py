"""CDI specifications: which device names a container engine can resolve, stale files left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KNOWN_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")


def devices(directories: Iterable[str], hooks: bool = True) -> dict[str, frozenset[str]]:
    """CDI kind → device names of every fresh specification in the folders. Unreadable and malformed files are left out.

    `hooks`: the engine runs a specification's hooks. NVIDIA's need them (they make the libraries' links), and apptainer has none.
    """
    found: dict[str, set[str]] = {}
    for directory in directories:
        for path in sorted(_files(Path(directory))):
            spec = _read(path)
            kind = spec.get("kind")
            if isinstance(kind, str):
                found.setdefault(kind, set()).update(_fresh(spec) if hooks or not _has_hooks(spec) else ())
    return {kind: frozenset(names) for kind, names in found.items() if names}


def stale(directories: Iterable[str]) -> dict[str, str]:
    """File of a specification → the first host file that it names and that is gone (a library of the driver before an upgrade)."""
    found = {}
    for directory in directories:
        for path in sorted(_files(Path(directory))):
            spec = _read(path)
            entries = [spec, *_mappings(spec.get("devices"))]
            gone = [name for entry in entries for name in _named(entry.get("containerEdits")) if not _there(name)]
            if gone:
                found[str(path)] = gone[0]
    return found


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


def _has_hooks(spec: Mapping[str, Any]) -> bool:
    edits = [spec.get("containerEdits"), *(d.get("containerEdits") for d in _mappings(spec.get("devices")))]
    return any(isinstance(e, dict) and e.get("hooks") for e in edits)


def _exists(edits: object) -> bool:
    return all(_there(name) for name in _named(edits))


def _there(name: str) -> bool:
    """False where the file is gone. What this user may not look at (a folder of root's) the engine may: nothing says that it is gone."""
    try:
        Path(name).stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _named(edits: object) -> list[str]:
    """Files and nodes of the host that an edit passes on."""
    if not isinstance(edits, dict):
        return []
    paths = [m.get("hostPath") for m in _mappings(edits.get("mounts"))]
    paths += [n.get("hostPath") or n.get("path") for n in _mappings(edits.get("deviceNodes"))]
    return [path for path in paths if isinstance(path, str)]


def _mappings(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []
