"""The mapping `fl:` of a recipe: what it asks of the launcher. Everything in it is optional, and a flag of `fl run` wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from fl.recipe_keys import Key
from fl.recipe_values import WrongValueError, coerce
from fl_trainers.config import SpeedPart

PARTS: Final = get_args(SpeedPart)

DIALECT: Final = "llamafactory-0.9"

LAUNCHER_KEYS: Final = {
    key.name: key
    for key in (
        Key(name="hw", kind="str", default="auto", choices=("auto", "cuda", "rocm", "ascend", "xpu", "cpu"), about="Lane to run on."),
        Key(
            name="engine",
            kind="str",
            default="auto",
            choices=("auto", "docker", "podman", "apptainer", "host"),
            about="What runs the training.",
        ),
        Key(name="stack", kind="str", about="Row of the matrix, by id."),
        Key(name="devices", kind="names", about="Indices, UUIDs or PCI addresses, `free`, or `count:N`."),
        Key(name="nodes", kind="int", default=1, low=1, high=1, about="Machines; a run stays on one."),
        Key(name="image", kind="str", about="Reference of the image to use instead of the stack's."),
        Key(name="mounts", kind="any", about="More paths to mount: `/path` or `/path:rw`."),
        Key(name="env", kind="any", about="Environment of the training, name to value."),
        Key(name="network", kind="str", choices=("none", "bridge", "host"), about="Network of the container."),
        Key(name="dialect", kind="str", default=DIALECT, choices=(DIALECT,), about="Language of the recipe's other keys."),
        Key(name="speed", kind="str", default="auto", choices=("auto", "off", "memory", "speed"), about="How steps are computed."),
        Key(name="speed_without", kind="names", about=f"Parts of the fast steps to leave out: {', '.join(PARTS)}."),
        Key(name="max_dropped", kind="float", default=0.5, low=0, high=1, about="Share of a data set's rows that may be left out."),
        Key(name="prompts", kind="any", about="Questions answered before and after training."),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """The mapping `fl:`, typed. None: not said."""

    hw: str | None = None
    engine: str | None = None
    stack: str | None = None
    devices: str | None = None
    """As `--devices` takes it: `0,2`."""
    nodes: int = 1
    image: str | None = None
    mounts: tuple[tuple[str, bool], ...] = ()
    """(path, writable), as written; relative ones are relative to the caller's folder."""
    env: Mapping[str, str] = field(default_factory=dict)
    network: str | None = None
    speed: Literal["auto", "off", "memory", "speed"] = "auto"
    speed_without: tuple[SpeedPart, ...] = ()
    max_dropped: float = 0.5
    dialect: str = DIALECT
    prompts: tuple[str, ...] = ()


def read_one(name: str, value: object) -> tuple[Any, str]:
    """The typed value of one subkey and a note, or WrongValueError. The name is known, the value is not null."""
    if name == "devices":
        return ",".join(coerce(LAUNCHER_KEYS[name], value)[0]) or None, ""
    if name == "speed_without":
        return _parts(coerce(LAUNCHER_KEYS[name], value)[0]), ""
    if name == "mounts":
        return tuple(_mount(item) for item in _list(value)), ""
    if name == "prompts":
        return tuple(_text(item) for item in _list(value)), ""
    if name == "env":
        return _environment(value), ""
    if name == "network" and value is False:
        return "none", "read as 'none'"
    if name == "speed" and value is False:
        return "off", "read as 'off'"
    return coerce(LAUNCHER_KEYS[name], value)


def wanted(name: str) -> str:
    """The words for "wanted …"."""
    words = {
        "mounts": "a list of paths, `:rw` behind those that are written to",
        "nodes": "1: a run stays on one machine, several are not built yet",
        "prompts": "a list of texts",
        "env": "a mapping of names to texts",
        "speed_without": f"some of {', '.join(PARTS)}",
    }
    return words.get(name) or LAUNCHER_KEYS[name].wanted


def _parts(names: tuple[str, ...]) -> tuple[str, ...]:
    if strange := [name for name in names if name not in PARTS]:
        raise WrongValueError(repr(strange[0]))
    return names


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise WrongValueError(repr(value)[:60])
    return value


def _mount(value: object) -> tuple[str, bool]:
    path, colon, mode = _text(value).partition(":")
    if not path or (colon and mode not in ("ro", "rw")):
        raise WrongValueError(repr(value)[:60])
    return path, mode == "rw"


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise WrongValueError(repr(value)[:60])
    for name, text in value.items():
        if not name.replace("_", "a").isalnum() or name[0].isdigit() or isinstance(text, list | dict) or text is None:
            raise WrongValueError(f"{name}: {text!r}"[:60])
    return {name: str(text).lower() if isinstance(text, bool) else str(text) for name, text in value.items()}
