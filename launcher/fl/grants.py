"""What a lane asks of an engine so that a container can use the chosen devices. Values only; lanes fill them, plan.py makes argv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fl.hardware import Problem

EngineName = Literal["docker", "podman", "apptainer", "host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A bind mount. Except for vendors' files, source and target are the same path."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine said about itself, before anything is planned. Under a replay: its defaults."""

    name: EngineName
    version: str | None = None
    rootless: bool = False
    userns_remap: bool = False
    nvidia_gpus: bool = True
    """docker: `--gpus` has a hook or runtime behind it."""
    cdi: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """CDI kind (`nvidia.com/gpu`) → device names of fresh specs that this engine reads."""
    cdi_assumed: bool = False
    """Under a replay: any CDI device that is asked for counts as there."""
    selinux: bool = False
    cgroup: int = 2
    crun: bool = True
    """podman: the runtime is crun, which can keep the caller's groups."""
    same_files: bool = True
    """False: the daemon sees another file system than the caller (found out by a nonce file)."""
    hard_limits: Mapping[str, int] = field(default_factory=dict)
    """Rlimits that the engine cannot raise above, by name (`memlock`, bytes); absent: no limit known."""
    storage: str | None = None
    """Folder where the engine keeps its images; None: it has none, or it is elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """Devices, mounts, groups and environment that one lane needs for the chosen accelerators on one engine."""

    devices: tuple[str, ...] = ()
    """Host device nodes passed one by one."""
    gpus: str | None = None
    """Value of docker's `--gpus`, e.g. `"device=0,2"` with its inner quotes."""
    cdi: tuple[str, ...] = ()
    """Fully qualified CDI names, e.g. `nvidia.com/gpu=0`."""
    groups: tuple[int, ...] = ()
    """Numeric gids that own the nodes."""
    mounts: tuple[Mount, ...] = ()
    """Vendor's host files."""
    environment: Mapping[str, str] = field(default_factory=dict)
    security: tuple[str, ...] = ()
    """Values of `--security-opt`."""
    memory_policy: bool = False
    """The runtime places memory by NUMA node (mbind, set_mempolicy), which docker's own seccomp profile refuses."""
    ipc: str | None = None
    flags: tuple[str, ...] = ()
    """Engine flags that fit nowhere else, e.g. apptainer's `--nv`."""
    isolated: bool = True
    """False: the process can open devices that were not chosen; visibility variables bind it instead."""
    problems: tuple[Problem, ...] = ()
    """Preflight findings: errors stop a real run."""
    notes: tuple[str, ...] = ()
