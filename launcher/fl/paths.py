"""Where things are: the project's own data, and the caller's folders. The one door to files that are not code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent
_DATA: Final = _PACKAGE / "_data"
_INSTALLED: Final = _DATA.is_dir()
_CHECKOUT: Final = _PACKAGE.parents[1]

MATRIX: Final = _DATA / "matrix.yaml" if _INSTALLED else _CHECKOUT / "matrix.yaml"
IMAGES: Final = _DATA / "images" if _INSTALLED else _CHECKOUT / "images"
EVIDENCE: Final = _DATA / "evidence" if _INSTALLED else _CHECKOUT / "evidence"
"""The ledger that came with fl; read only."""
REFERENCES: Final = _DATA / "references" if _INSTALLED else _CHECKOUT / "tests" / "references"
"""Loss curves of `fl conform`, one file a stack."""
LAUNCHER_CODE: Final = _PACKAGE


def trainer_code() -> Path:
    """The folder of the package fl_trainers, which is installed beside fl."""
    import fl_trainers

    return Path(fl_trainers.__file__).resolve().parent


def recipes() -> Path:
    """The folder of shipped recipes and their data."""
    return trainer_code() / "recipes"


def _base(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/fl`: environments, models, compilers' caches. All of it can be made again."""
    return _base("XDG_CACHE_HOME", ".cache") / "fl"


def state_home() -> Path:
    """`$XDG_STATE_HOME/fl`: runs and evidence."""
    return _base("XDG_STATE_HOME", ".local/state") / "fl"


def config_home() -> Path:
    """`$XDG_CONFIG_HOME/fl`: settings."""
    return _base("XDG_CONFIG_HOME", ".config") / "fl"


def runs_home() -> Path:
    """The run folders."""
    return state_home() / "runs"
