"""What an image asks of NVIDIA's driver (NVIDIA_REQUIRE_CUDA): the toolkit's hook compares it, by CDI nobody does. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fl.hardware import Accelerator, Hardware
from fl.lanes.values import numbers

_TERM: Final = re.compile(r"(!?)(cuda|driver|arch|brand)\s*(>=|<=|!=|>|<|=)\s*([\w.-]{1,40})")
_COMPARE: Final[dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip


def unmet(environment: Mapping[str, str], hardware: Hardware, chosen: Sequence[Accelerator]) -> tuple[str, ...] | None:
    """The image's demands that this machine certainly does not meet; None: whether it meets them cannot be told."""
    if environment.get("NVIDIA_DISABLE_REQUIRE", "").lower() in ("1", "true", "yes"):
        return ()
    wanted = {name: value for name, value in environment.items() if name.startswith("NVIDIA_REQUIRE_") and value.strip()}
    met = {f"{name}={value}": _met(value, hardware, chosen) for name, value in wanted.items()}
    failed = tuple(text for text, one in met.items() if one is False)
    return failed if failed or None not in met.values() else None


def _met(text: str, hardware: Hardware, chosen: Sequence[Accelerator]) -> bool | None:
    """Alternatives stand apart by blanks, terms that must all hold by commas."""
    found = [_all([_term(term, hardware, chosen) for term in group.split(",") if term]) for group in text.split()]
    return True if True in found else None if None in found else False


def _all(terms: Sequence[bool | None]) -> bool | None:
    return False if False in terms else None if None in terms else True


def _term(text: str, hardware: Hardware, chosen: Sequence[Accelerator]) -> bool | None:
    match = _TERM.fullmatch(text.strip())
    if match is None or match[2] == "brand":
        return None
    driver = hardware.drivers.get("nvidia", {})
    chips = [f"{a.arch[3:-1]}.{a.arch[-1]}" if a.arch and a.arch.startswith("sm_") else None for a in chosen]
    values = {"cuda": [driver.get("max_cuda")], "driver": [driver.get("version")], "arch": chips}[match[2]]
    holds = [None if value is None else _compared(numbers(value), match[3], numbers(match[4])) is not bool(match[1]) for value in values]
    return _all(holds)


def _compared(have: tuple[int, ...], sign: str, wanted: tuple[int, ...]) -> bool:
    """`535` means every 535.x where equality is asked for."""
    return _COMPARE[sign](have[: len(wanted)] if sign in ("=", "!=") else have, wanted)
