"""The caller's settings in `$XDG_CONFIG_HOME/fl/config.yaml`: registry and ledger."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from fl import paths
from fl.errors import UsageError

_KEYS = ("registry", "ledger")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`registry`: where images are pulled from, e.g. `registry.example.org/team`; `ledger`: folder of evidence records."""

    registry: str | None = None
    ledger: str | None = None


def load(path: Path | None = None) -> Settings:
    """The settings; defaults where there is no file. UsageError names the file and the key."""
    path = path or paths.config_home() / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings {path} cannot be read: {error}", f"mend or remove {path}") from error
    import yaml

    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"the settings {path} are not YAML: {error}", f"mend or remove {path}") from error
    if not isinstance(values, dict):
        raise UsageError(f"the settings {path} must be a mapping of {', '.join(_KEYS)}", f"mend or remove {path}")
    for key, value in values.items():
        if key not in _KEYS:
            near = get_close_matches(str(key), _KEYS, 1)
            raise UsageError(f"{path}: unknown setting `{key}`", f"use `{near[0]}`" if near else f"known settings: {', '.join(_KEYS)}")
        if not isinstance(value, str):
            raise UsageError(f"{path}: `{key}` must be a text, found {value!r}", f"mend {path}")
    return Settings(**values)
