"""What detection found, as frozen values. `Hardware.to_json` is the contract of `fl hw --json` (schema 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

LaneName = Literal["cuda", "rocm", "ascend", "xpu", "cpu"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a fact was read, and what stood there."""

    source: str
    value: str


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of a device that is sold as a device: MIG, an AMD compute partition, an Ascend vNPU."""

    kind: Literal["mig", "cpx", "vnpu"]
    profile: str | None
    parent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device that a job could be given. None means that the data cannot tell."""

    lane: LaneName
    index: int
    """Position in the vendor's own order: nvidia-smi, numeric KFD nodes, number of the davinci file, PCI order."""
    name: str | None = None
    arch: str | None = None
    memory_mib: int | None = None
    uuid: str | None = None
    pci: str | None = None
    numa_node: int | None = None
    nodes: tuple[str, ...] = ()
    """Device nodes of this device alone, without those that every device of the lane needs."""
    partition: Partition | None = None
    usable: bool | None = None
    busy: bool | None = None
    healthy: bool | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor as this process may use it: cores and memory of the cgroup, not of the host."""

    model: str | None = None
    cores: int = 1
    memory_mib: int | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is wrong, and what to do about it."""

    code: str
    severity: Severity
    message: str
    remedy: str
    lane: LaneName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A device node. `openable` is the result of opening it read-write as this user."""

    path: str
    type: str = "c"
    major: int = 0
    minor: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    openable: bool | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What one lane found; hardware.py's `Hardware` is all lanes together."""

    accelerators: tuple[Accelerator, ...] = ()
    driver: Mapping[str, str | None] | None = None
    problems: tuple[Problem, ...] = ()
    nodes: tuple[Node, ...] = ()
    """Device nodes of the devices and those that the whole lane needs (/dev/kfd, /dev/nvidiactl, /dev/davinci_manager …)."""
    host_paths: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A machine. `nodes` and `host_paths` serve the plan and are not part of the JSON."""

    os: str
    arch: str
    accelerators: tuple[Accelerator, ...] = ()
    cpu: Cpu = field(default_factory=Cpu)
    drivers: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    elapsed_ms: int = 0
    nodes: Mapping[str, Node] = field(default_factory=dict)
    """Every device node seen that a lane may hand to a container, by path."""
    host_paths: frozenset[str] = frozenset()
    """Those of the vendors' host paths (driver libraries, tools) that exist."""
    withheld: frozenset[tuple[LaneName, int]] = frozenset()
    """(lane, index) of devices that the caller's environment or the scheduler takes out of reach. They stay listed: runtimes count them."""
    replayed: bool = False

    def of_lane(self, lane: LaneName) -> tuple[Accelerator, ...]:
        """The accelerators of one lane, in order."""
        return tuple(a for a in self.accelerators if a.lane == lane)

    @property
    def platform(self) -> str:
        """The OCI platform, e.g. `linux/amd64`."""
        return f"{self.os}/{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(self.arch, self.arch) }"

    def to_json(self) -> dict[str, Any]:
        """The document of `fl hw --json`."""
        return {
            "schema": 1,
            "os": self.os,
            "arch": self.arch,
            "elapsed_ms": self.elapsed_ms,
            "accelerators": [accelerator_json(a) for a in self.accelerators],
            "cpu": {
                "model": self.cpu.model,
                "cores": self.cpu.cores,
                "memory_mib": self.cpu.memory_mib,
                "features": list(self.cpu.features),
            },
            "drivers": {name: dict(values) for name, values in self.drivers.items()},
            "problems": [
                {"code": p.code, "severity": p.severity, "lane": p.lane, "message": p.message, "remedy": p.remedy} for p in self.problems
            ],
        }


def accelerator_json(a: Accelerator) -> dict[str, Any]:
    """One entry of `accelerators`."""
    partition = None if a.partition is None else {"kind": a.partition.kind, "profile": a.partition.profile, "parent": a.partition.parent}
    return {
        "lane": a.lane,
        "index": a.index,
        "name": a.name,
        "arch": a.arch,
        "memory_mib": a.memory_mib,
        "uuid": a.uuid,
        "pci": a.pci,
        "numa_node": a.numa_node,
        "nodes": list(a.nodes),
        "partition": partition,
        "usable": a.usable,
        "busy": a.busy,
        "healthy": a.healthy,
        "evidence": [{"source": e.source, "value": e.value} for e in a.evidence],
    }


def names(accelerators: Sequence[Accelerator]) -> str:
    """A short text for messages: `2 x NVIDIA H100 80GB HBM3 (sm_90)`."""
    counted: dict[str, int] = {}
    for a in accelerators:
        text = f"{a.name or 'unnamed device'} ({a.arch or 'unknown chip'})"
        counted[text] = counted.get(text, 0) + 1
    return ", ".join(f"{n} x {text}" for text, n in counted.items())
