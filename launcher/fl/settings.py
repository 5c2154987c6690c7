"""The caller's settings in `$XDG_CONFIG_HOME/fl/config.yaml`: registry, ledger, and the mirrors of a site."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from fl import paths
from fl.errors import UsageError

_KEYS: Final = ("registry", "ledger", "mirrors")
_MIRRORS: Final = ("registry", "index", "hub", "modelscope")
_DOCKER_HUB: Final = "docker.io"
_PLACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*")
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrors:
    """What stands in for the places that this site cannot reach, or should not."""

    registry: Mapping[str, str] = field(default_factory=dict)
    """Registry host → host and path of its mirror."""
    index: str | None = None
    """Package index (PEP 503), instead of the one that pip is configured for."""
    hub: str | None = None
    """Address of a hub that speaks the Hugging Face hub's protocol."""
    modelscope_hub: bool = False
    """`hub: modelscope`: names of a hub are ModelScope's."""
    modelscope: str | None = None
    """Address that stands in for ModelScope's own."""

    def image(self, reference: str) -> str:
        """An image's name with its registry replaced; as it is where no mirror is configured for that."""
        host, path = split(reference)
        return f"{self.registry[host]}/{path}" if host in self.registry else reference


def split(reference: str) -> tuple[str, str]:
    """(registry host, the rest) of an image's name, as docker reads it: `debian:12` is `docker.io`, `library/debian:12`."""
    first, slash, rest = reference.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return (_DOCKER_HUB if first == "index.docker.io" else first), rest
    return _DOCKER_HUB, reference if slash else f"library/{reference}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`registry`: where images are pulled from, e.g. `registry.example.org/team`; `ledger`: folder of evidence records."""

    registry: str | None = None
    ledger: str | None = None
    mirrors: Mirrors = Mirrors()


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
    _mapping(values, _KEYS, f"the settings {path}", path)
    texts = {key: value for key, value in values.items() if key != "mirrors"}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UsageError(f"{path}: `{key}` must be a text, found {value!r}", f"mend {path}")
    if texts.get("registry"):
        texts["registry"] = place(texts["registry"], f"{path}: registry")
    return Settings(**texts, mirrors=_mirrors(values.get("mirrors") or {}, path))


def place(told: str, where: str) -> str:
    """Host and path of a registry, without a slash at its end. UsageError for anything else; `where` it was told."""
    if _PLACE.fullmatch(found := told.rstrip("/")):
        return found
    hint = found.split("://", 1)[-1].lower()
    said = f"{where}: {told!r} is no registry: it takes a host and a path, in small letters and without http://"
    raise UsageError(said, hint if _PLACE.fullmatch(hint) else "registry.example.com/team")


def _mapping(values: object, known: tuple[str, ...], what: str, path: Path) -> None:
    if not isinstance(values, dict):
        raise UsageError(f"{what} must be a mapping of {', '.join(known)}", f"mend or remove {path}")
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            raise UsageError(f"{what}: unknown setting `{key}`", f"use `{near[0]}`" if near else f"known settings: {', '.join(known)}")


def _mirrors(values: Any, path: Path) -> Mirrors:
    _mapping(values, _MIRRORS, f"{path}: mirrors", path)
    hub = _address(values, "hub", path)
    if hub is not None and "modelscope" in hub.lower():
        said = f"{path}: mirrors.hub: ModelScope speaks a protocol of its own, an address there is not one of a Hugging Face hub"
        raise UsageError(said, f"hub: modelscope\nmodelscope: {hub}")
    return Mirrors(
        registry=_registries(values.get("registry"), path), index=_address(values, "index", path), hub=hub,
        modelscope_hub=values.get("hub") == "modelscope", modelscope=_address(values, "modelscope", path),
    )  # fmt: skip


def _address(values: Mapping[str, Any], key: str, path: Path) -> str | None:
    value = values.get(key)
    if value is None or (key == "hub" and value == "modelscope"):
        return None
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/]+\S*", value):
        raise UsageError(f"{path}: mirrors.{key} must be an http address, found {value!r}", f"{key}: https://HOST/PATH")
    if key == "index":
        return value
    if "@" in value.split("/")[2]:  # it stands in plans and in the environment of containers, where anybody can read it
        token = "HF_TOKEN" if key == "hub" else "MODELSCOPE_API_TOKEN"
        raise UsageError(f"{path}: mirrors.{key} holds a user or password", f"{key}: https://HOST, and the token in {token}")
    return value.rstrip("/")


def _registries(value: Any, path: Path) -> dict[str, str]:
    """One text stands in for Docker Hub; a mapping names the registries."""
    table = {_DOCKER_HUB: value} if isinstance(value, str) else value or {}
    if not isinstance(table, dict):
        raise UsageError(f"{path}: mirrors.registry must be a text or a mapping, found {value!r}", "registry: {docker.io: HOST/PATH}")
    for host, place in table.items():
        if not isinstance(host, str) or not _HOST.fullmatch(host):
            raise UsageError(f"{path}: mirrors.registry: {host!r} is not a registry's host", "registry: {docker.io: HOST/PATH}")
        if not isinstance(place, str) or not _PLACE.fullmatch(place.rstrip("/")):
            hint = place.split("://", 1)[1] if isinstance(place, str) and "://" in place else "HOST/PATH"
            raise UsageError(f"{path}: mirrors.registry.{host}: {place!r} is not a host and path", f"{host}: {hint}")
    return {host: place.rstrip("/") for host, place in table.items()}


def hub_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the trainer and its libraries must be told of the Hugging Face hub: the caller's HF_ENDPOINT, else the settings' mirror."""
    endpoint = environ.get("HF_ENDPOINT") or load().mirrors.hub
    return {"HF_ENDPOINT": endpoint} if endpoint else {}
