"""Comparing versions: PEP 440 for packages, part by part for drivers, whose numbers (`580.95.05`, `24.1.rc3.7`) are not PEP 440."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

_CLAUSE: Final = re.compile(r"(>=|<=|==|>|<)\s*([0-9][0-9A-Za-z.]*)")
_PART: Final = re.compile(r"(?:(rc)?([0-9]+))", re.IGNORECASE)

DriverKey = tuple[tuple[int, int], ...]


def driver_key(version: str) -> DriverKey | None:
    """A sortable form of a driver's version; None where a part is neither a number nor `rcN`. Candidates sort before their release."""
    parts: list[tuple[int, int]] = []
    for part in re.split(r"[.\-_]", version.strip()):
        match = _PART.fullmatch(part)
        if match is None:
            return None
        parts.append((0 if match[1] else 1, int(match[2])))
    while parts and parts[-1] == (1, 0):
        parts.pop()
    return tuple(parts)


def _compare(left: DriverKey, right: DriverKey) -> int:
    """-1, 0 or 1; the shorter one is filled up with zeros."""
    length = max(len(left), len(right))
    padded_left, padded_right = (key + ((1, 0),) * (length - len(key)) for key in (left, right))
    return (padded_left > padded_right) - (padded_left < padded_right)


def driver_clauses(specifier: str) -> tuple[tuple[str, str], ...]:
    """`>=25.2,<27` → its parts. ValueError when it is not of that form."""
    clauses = []
    for text in specifier.split(","):
        match = _CLAUSE.fullmatch(text.strip())
        if match is None or driver_key(match[2]) is None:
            raise ValueError(f"'{specifier}' is not a driver specifier such as >=580.65.06")
        clauses.append((match[1], match[2]))
    return tuple(clauses)


def driver_fits(version: str, specifier: str) -> bool | None:
    """Whether a driver is in a range; None when its version cannot be compared."""
    key = driver_key(version)
    if key is None:
        return None
    for operator, bound in driver_clauses(specifier):
        order = _compare(key, driver_key(bound) or ())
        if not {">=": order >= 0, "<=": order <= 0, "==": order == 0, ">": order > 0, "<": order < 0}[operator]:
            return False
    return True


def driver_below(left: str, right: str) -> bool:
    """Whether one driver version is older than another; both must be comparable."""
    return _compare(driver_key(left) or (), driver_key(right) or ()) < 0


def driver_above(version: str, bound: str) -> bool:
    """Whether a driver is newer than all that a bound names: 26.2 is above 26.1, 26.1.3 is not. False where it cannot be compared."""
    key, limit = driver_key(version), driver_key(bound)
    if key is None or limit is None:
        return False
    return _compare(key[: len(limit)], limit) > 0


def is_version(text: str) -> bool:
    """Whether the text is a PEP 440 version."""
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


@lru_cache(maxsize=1024)
def _sets(specifier: str) -> tuple[SpecifierSet, ...]:
    return tuple(SpecifierSet("" if text.strip() == "*" else text.strip()) for text in specifier.split("||"))


def is_specifier(text: str) -> bool:
    """Whether the text is PEP 440 specifiers, with `||` between alternatives and `*` for any version."""
    try:
        return bool(_sets(text))
    except InvalidSpecifier:
        return False


def fits(version: str, specifier: str) -> bool:
    """Whether a version satisfies one of the alternatives of a specifier; pre-releases count."""
    return any(one.contains(version, prereleases=True) for one in _sets(specifier))
