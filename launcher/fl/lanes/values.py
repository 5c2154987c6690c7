"""Reading single values out of text that others wrote: bounded, and None where it says nothing."""

from __future__ import annotations

import re
from typing import Final

from fl.ui import clean

_NOTHING: Final = re.compile(
    r"\[?(n/?a|none|null|unknown|unknown error|x+|not available.*|\[?not supported\]?|insufficient permissions"
    r"|requested functionality.*|deprecated.*|-|err!)\]?",
    re.I,
)
_NAMELESS: Final = re.compile(
    r"(nvidia )?graphics device|device (0x)?[0-9a-f]{4}|0x[0-9a-f]{1,8}|advanced micro devices.*|nvidia corporation", re.I
)
_VERSION: Final = re.compile(r"v?(\d{1,6}(?:\.[0-9A-Za-z]{1,12}){1,5})(?=\s|$)")
_BDF: Final = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])")
_HEX: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{1,16})")
_MEMORY: Final = re.compile(r"(\d{1,9})(?:\.\d{1,6})?\s*(?:MiB|MB)?")
_MEMORY_ANY: Final = 1 << 30


MOST: Final = 256
"""Devices that one source may name: more than any machine has, few enough for broken input to cost nothing."""
_LINES: Final = 20000
_WIDTH: Final = 500
_LEAD: Final = 20
"""Of a text of which one line is wanted, so many times its length is looked at."""


def rows(text: str) -> list[str]:
    """The lines of a table made for eyes, cut to a sane number and width."""
    return [line[:_WIDTH].rstrip("\r") for line in text.split("\n", _LINES)[:_LINES]]


def squeezed(line: str) -> str:
    """A line with single spaces."""
    return " ".join(line.split())


def known(text: str | None, limit: int = 200) -> str | None:
    """The text without control characters; None for empty, masked and not-available values."""
    value = clean(" ".join((text or "")[: _LEAD * limit].split()))[:limit]
    return None if not value or _NOTHING.fullmatch(value) else value


def product(text: str | None) -> str | None:
    """The text as a product's name; None for what stands where a driver or a table knows no name: `Graphics Device`, an id, a vendor."""
    value = known(text)
    return None if value is None or _NAMELESS.fullmatch(value) else value


def whole(text: str | None, limit: int = 20) -> int | None:
    """A decimal number of at most `limit` digits."""
    value = (text or "").strip()
    return int(value) if value.isascii() and value.isdigit() and len(value) <= limit else None


def hexadecimal(text: str | None) -> int | None:
    """A number such as `0x2330`, at most 64 bits."""
    match = _HEX.fullmatch((text or "").strip())
    return int(match[1], 16) if match else None


def mebibytes(text: str | None) -> int | None:
    """`81559 MiB` → 81559; zero is no size."""
    match = _MEMORY.fullmatch((text or "").strip())
    value = int(match[1]) if match else 0
    return value if 0 < value < _MEMORY_ANY else None


def version(text: str | None) -> str | None:
    """The version that a text starts with: `610.57.04 [Deprecated …]` → `610.57.04`."""
    match = _VERSION.match((text or "").strip())
    return match[1] if match else None


def numbers(text: str) -> tuple[int, ...]:
    """A version's numeric parts, for comparing: `25.5.0` → (25, 5, 0)."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", text))


def bdf(text: str | None) -> str | None:
    """A PCI address as Linux writes it: `00000000:2D:00.0` → `0000:2d:00.0`."""
    match = _BDF.fullmatch((text or "").strip())
    if not match:
        return None
    return f"{int(match[1] or '0', 16):04x}:{match[2].lower()}:{match[3].lower()}.{match[4]}"
