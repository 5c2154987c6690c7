"""Ascend devices for an engine: card files, manager nodes, and the driver's files of the host, which every image expects at one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fl.grants import EngineFacts, Grants, Mount
from fl.hardware import Accelerator, Hardware, Problem
from fl.lanes.groups import group_grants, missing_nodes

MANAGERS: Final = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
FILES: Final = ("driver/lib64", "driver/version.info")
"""Below the driver's install prefix."""
INSTALL_INFO: Final = "/etc/ascend_install.info"
NETWORK: Final = "/etc/hccn.conf"
"""Addresses of the cards' own network ports; HCCL reads it when several cards work together."""
_INSIDE: Final = "/usr/local/Ascend"
_TOOLS: Final = ("/usr/local/dcmi", "/usr/local/bin/npu-smi")
_SOC: Final = ("svm0", "ts_aisle", "upgrade", "sys", "vdec", "vpc", "pngd", "venc", "log_drv", "acodec", "ai", "ao", "vo", "hdmi")


def grants(chosen: Sequence[Accelerator], hardware: Hardware, engine: EngineFacts) -> Grants:
    """Only the chosen cards' files: the process sees them as 0..n-1, so no visibility variable is set inside."""
    if engine.name == "host":
        return Grants(environment=visibility(chosen, hardware), isolated=False)
    mounts = _mounts(hardware, len(chosen))
    absent = tuple(
        Problem(
            code="nodes-missing",
            severity="error",
            lane="ascend",
            message=f"{mount.source} is not on this machine: the container needs the driver's files",
            remedy="Install the Ascend driver (HDK) on the host."
            if mount.source != NETWORK
            else "Make it with hccn_tool, or use one card: `--devices 0`.",
        )
        for mount in mounts
        if mount.source not in hardware.host_paths
    )
    managers = _managers(chosen, hardware)
    cards = tuple(dict.fromkeys(path for a in chosen for path in (a.nodes or (f"/dev/davinci{a.index}",))))
    groups = group_grants((*cards, *managers), hardware, engine, "ascend")
    missing = missing_nodes((*cards, *managers), hardware, "ascend", "Load the Ascend driver, or start this container with the nodes.")
    renamed = _renamed(cards) if engine.name == "apptainer" else ()
    return Grants(
        devices=(*(cards if engine.name == "apptainer" else map(_as_seen_inside, cards)), *managers),
        groups=groups.groups,
        flags=groups.flags,
        mounts=mounts,
        problems=groups.problems + missing + absent + renamed,
        notes=_busy_note(chosen),
    )


def _as_seen_inside(path: str) -> str:
    """A virtual card's file is renamed in the container, where libraries look for davinciN."""
    return f"{path}:{path.replace('/dev/vdavinci', '/dev/davinci')}" if path.startswith("/dev/vdavinci") else path


def _renamed(cards: Sequence[str]) -> tuple[Problem, ...]:
    """Apptainer binds a node under its own name only, and skips others with a warning."""
    return tuple(
        Problem(
            code="nodes-missing",
            severity="error",
            lane="ascend",
            message=f"{path} is a virtual card, whose node must have another name inside, and apptainer cannot give it one",
            remedy="use `--engine docker` or `--engine podman`",
        )
        for path in cards
        if path.startswith("/dev/vdavinci")
    )


def _managers(chosen: Sequence[Accelerator], hardware: Hardware) -> tuple[str, ...]:
    """By generation: A5 has no devmm_svm but the UB nodes, the SoC has many small ones, 910 and 310P may have dvpp_cmdlist."""
    arches = {a.arch for a in chosen}
    if arches == {"ascend950"}:
        return (
            "/dev/davinci_manager",
            "/dev/hisi_hdc",
            *sorted(path for path in hardware.nodes if path.startswith(("/dev/uburma/", "/dev/ummu/"))),
        )
    if arches == {"ascend310b"} or ("/dev/svm0" in hardware.nodes and "/dev/devmm_svm" not in hardware.nodes):
        return ("/dev/davinci_manager", *(f"/dev/{name}" for name in _SOC if f"/dev/{name}" in hardware.nodes))
    optional = ("/dev/dvpp_cmdlist",) if "/dev/dvpp_cmdlist" in hardware.nodes else ()
    return (*MANAGERS, *optional)


def _mounts(hardware: Hardware, count: int) -> tuple[Mount, ...]:
    """Sources where the driver is installed, targets where images look for them."""
    found = next((path for path in sorted(hardware.host_paths) if path.endswith("/driver/lib64")), f"{_INSIDE}/driver/lib64")
    prefix = found.removesuffix("/driver/lib64")
    mounts = [Mount(source=path, target=path) for path in _TOOLS]
    mounts += [Mount(source=f"{prefix}/{name}", target=f"{_INSIDE}/{name}") for name in FILES]
    mounts.append(Mount(source=INSTALL_INFO, target=INSTALL_INFO))
    if count > 1:
        mounts.append(Mount(source=NETWORK, target=NETWORK))
    return tuple(mounts)


def _busy_note(chosen: Sequence[Accelerator]) -> tuple[str, ...]:
    busy = [str(a.index) for a in chosen if a.busy]
    return (f"card {', '.join(busy)} is in use; a container that shares a card fails at once (-8020)",) if busy else ()


def visibility(chosen: Sequence[Accelerator], hardware: Hardware) -> Mapping[str, str]:
    """Logical ids: positions among the cards that this process can see, in the order of their files."""
    visible = sorted(a.index for a in hardware.of_lane("ascend") if a.nodes) or sorted(a.index for a in chosen)
    return {"ASCEND_RT_VISIBLE_DEVICES": ",".join(str(visible.index(a.index)) for a in chosen if a.index in visible)}
