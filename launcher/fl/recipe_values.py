"""The value of one key: checked for type and range, with the conversions that users of Hugging Face's tools expect."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

from fl.recipe_keys import Key, Kind
from fl.recipe_yaml import scalar

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")
OLD: Final = {"bitsandbytes": "bnb"}
"""Words of older versions."""


class WrongValueError(ValueError):
    """The text says what was found; the caller knows key and place."""


def coerce(key: Key, value: object) -> tuple[Any, str]:
    """The typed value, and a note where it was written as another type. `WrongValueError` where no reading of it fits."""
    typed: Any = _word(key, value) if key.choices and key.kind != "names" else _READ[key.kind](value)
    words = typed if key.kind == "names" else [typed]
    for word in words if key.choices else ():
        if word not in key.choices:
            raise WrongValueError(_found(word))
    if not _finite(typed):
        raise WrongValueError(_found(value))
    if isinstance(typed, int | float) and not isinstance(typed, bool) and _outside(key, typed):
        raise WrongValueError(_found(value))
    if isinstance(value, str) and value.strip() in OLD and key.choices:
        return typed, f"read as {typed!r}"
    same = key.kind in ("names", "floats", "any") or type(typed) is type(value) or (key.kind == "float" and type(value) is int)
    return typed, "" if same else f"read as {typed!r}" if not isinstance(typed, dict) else "read as JSON"


def _outside(key: Key, value: float) -> bool:
    return (
        (key.low is not None and value < key.low)
        or (key.high is not None and value > key.high)
        or (key.above is not None and value <= key.above)
        or (key.below is not None and value >= key.below)
    )


def _finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(v) for v in value.values())
    return all(_finite(v) for v in value) if isinstance(value, list | tuple) else True


def _found(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _word(key: Key, value: object) -> object:
    """A choice. YAML reads an unquoted `no` as false, and `include_num_input_tokens_seen: true` means `all`."""
    if isinstance(value, bool):
        word = ("all" if "all" in key.choices else None) if value else "no"
        return word if word in key.choices else value
    if key.kind == "int":
        return _int(value)
    return OLD.get(value.strip(), value.strip()) if isinstance(value, str) else value


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int) and str(value).strip().lower() in (*_TRUE, *_FALSE):
        return str(value).strip().lower() in _TRUE
    raise WrongValueError(_found(value))


def _number(value: object) -> int | float:
    number = scalar(value.strip()) if isinstance(value, str) else value
    if isinstance(number, str) and number.lstrip("+-").isdigit() and len(number) < 30:
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise WrongValueError(_found(value))
    return number


def _int(value: object) -> int:
    number = _number(value)
    if isinstance(number, float) and not number.is_integer():
        raise WrongValueError(_found(value))
    if abs(number) > 2**63:
        raise WrongValueError(_found(value))
    return int(number)


def _float(value: object) -> float:
    number = _number(value)
    if isinstance(number, int) and abs(number) > 2**63:
        raise WrongValueError(_found(value))
    return float(number)


def _str(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise WrongValueError(_found(value))
    return str(value)


def _names(value: object) -> tuple[str, ...]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",") if isinstance(value, str) else [value]
    names = tuple(_str(part).strip() for part in parts)
    return tuple(name for name in names if name)


def _floats(value: object) -> tuple[float, ...]:
    parts = (
        value
        if isinstance(value, list)
        else [part for part in str(value).split(",") if part.strip()]
        if isinstance(value, str)
        else [value]
    )
    return tuple(_float(part) for part in parts)


def _mapping(value: object) -> dict[str, Any] | str:
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            parsed = json.loads(value)
        except ValueError:
            raise WrongValueError(_found(value)) from None
        return dict(parsed)
    if isinstance(value, str) and value.strip():
        return value
    raise WrongValueError(_found(value))


def _any(value: object) -> object:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


_READ: Final[dict[Kind, Callable[[object], object]]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
    "names": _names,
    "floats": _floats,
    "mapping": _mapping,
    "any": _any,
}
