"""`fl doctor`: one ordered list of checks, each a pure function of the facts (doctor_facts.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from fl import doctor_engine, doctor_hardware, doctor_site
from fl.doctor_facts import Facts
from fl.findings import CheckName, Finding

CHECKS: Final[tuple[tuple[CheckName, Callable[[Facts], Iterable[Finding]]], ...]] = (
    ("host", doctor_hardware.host),
    ("driver", doctor_hardware.driver),
    ("fabric", doctor_hardware.fabric),
    ("uvm", doctor_hardware.uvm),
    ("ecc", doctor_hardware.ecc),
    ("persistence", doctor_hardware.persistence),
    ("numa", doctor_hardware.numa),
    ("access", doctor_hardware.access),
    ("engine", doctor_engine.engine),
    ("runtime", doctor_engine.runtime),
    ("image", doctor_engine.image),
    ("registry", doctor_site.registry),
    ("disk", doctor_site.disks),
    ("memory", doctor_site.memory),
    ("cache", doctor_site.cache),
    ("clock", doctor_site.clock),
)
_EXITS: Final[tuple[tuple[int, frozenset[str]], ...]] = (
    (3, frozenset({"host", "driver", "fabric", "uvm", "ecc", "persistence", "numa", "access"})),
    (6, frozenset({"engine", "runtime", "disk", "memory", "cache", "clock"})),
    (7, frozenset({"image", "registry"})),
)
"""The worst first: without the device no engine helps, without an engine no image."""


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Every check's findings, in order."""
    return tuple(finding for _, check in CHECKS for finding in check(facts))


def exit_code(findings: Iterable[Finding]) -> int:
    """3, 6 or 7 by the worst error, else 0."""
    failed = {finding.check for finding in findings if finding.status == "error"}
    return next((code for code, checks in _EXITS if failed & checks), 0)


def to_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """The document of `fl doctor --json`."""
    return {"schema": 1, "checks": [finding.to_json() for finding in findings]}
