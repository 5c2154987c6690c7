"""Files that belong together, written whole: all of them or none, whatever goes wrong on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from fl.errors import FlError


def write(files: Mapping[Path, str], failure: type[FlError], remedy: str) -> list[str]:
    """Replaces the files; their names. All are written beside their places before the first one moves there, so that a full disk or
    Ctrl-C leaves every file as it was. Raises `failure` where one cannot be written."""
    parts = {target: target.with_name(f".{target.name}.part") for target in files}
    begun: Path | None = None
    try:
        for target, text in files.items():
            begun = target
            target.parent.mkdir(parents=True, exist_ok=True)
            parts[target].write_text(text, encoding="utf-8")
        for target, part in parts.items():
            begun = target
            part.replace(target)
    except OSError as error:
        raise failure(f"{begun} cannot be written: {error.strerror}; nothing was changed", f"df -h {_there(begun)}\n{remedy}") from error
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return [str(target) for target in files]


def _there(place: Path | None) -> Path:
    """The folder nearest to a place that exists."""
    return next((one for one in (place.parents if place else ()) if one.is_dir()), Path("/"))
