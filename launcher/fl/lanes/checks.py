"""The lanes' own checks of `fl doctor`, and the nodes that every process of a lane opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fl.findings import Finding
from fl.hardware import Accelerator, Hardware, LaneName
from fl.host import Host
from fl.lanes import cuda_checks, cuda_requirement, rocm_checks
from fl.lanes.ascend_grants import MANAGERS

CHECKS: Final[dict[LaneName, Callable[[Host, Hardware, str | None], tuple[Finding, ...]]]] = {
    "cuda": cuda_checks.checks,
    "rocm": rocm_checks.checks,
}
"""Lanes that know more than detection tells. Arguments: host, what detection found, the kind of container this is seen from."""

COMPANIONS: Final[dict[LaneName, tuple[str, ...]]] = {
    "cuda": cuda_checks.COMPANIONS,
    "rocm": rocm_checks.COMPANIONS,
    "ascend": MANAGERS,
}

EARLY: Final[dict[LaneName, tuple[tuple[str, ...], ...]]] = {"cuda": cuda_checks.EARLY}
"""Their slow commands, which may be started while detection still looks."""

QUICK: Final[dict[LaneName, Callable[[Hardware, str | None], tuple[Finding, ...]]]] = {"cuda": cuda_checks.uvm}
"""Of these, what detection's own facts tell: asked before every run. Pure."""

Unmet = Callable[[Mapping[str, str], Hardware, Sequence[Accelerator]], tuple[str, ...] | None]
UNMET: Final[dict[LaneName, Unmet]] = {"cuda": cuda_requirement.unmet}
"""By an image's own environment: its demands on the driver that this machine does not meet, None where that cannot be told. Pure."""
