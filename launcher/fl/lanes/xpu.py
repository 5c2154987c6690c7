"""Intel GPUs: the PCI bus and render nodes first, xpu-smi for names. Graphics inside a processor is a display adapter, no lane."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from fl.grants import EngineFacts, Grants, Mount
from fl.hardware import Accelerator, Detection, Evidence, Hardware, Node, Problem
from fl.host import Host
from fl.lanes import pci
from fl.lanes.groups import group_grants, missing_nodes
from fl.lanes.pci import PciDevice
from fl.lanes.values import bdf, known, rows, version, whole
from fl.lanes.xpu_visible import HIERARCHY, restriction

__all__ = ["DRIVER", "EXCLUSIVE", "PARTITIONS_TOGETHER", "TITLE", "detect", "grants", "restriction", "visibility"]

TITLE = "Intel"
DRIVER = "intel"
EXCLUSIVE = False
PARTITIONS_TOGETHER = True
_VENDOR: Final = 0x8086
_HABANA: Final = 0x1DA3
_KERNEL_DRIVERS: Final = ("xe", "i915")
_BY_PATH: Final = "/dev/dri/by-path"
_NODE: Final = re.compile(r"(renderD|card)\d{1,4}")
_CHIPS: Final[tuple[tuple[int, int, str, str], ...]] = (
    (0x0BD0, 0x0BD8, "Intel Data Center GPU Max 1550", "xe-hpc"),
    (0x0BD9, 0x0BDB, "Intel Data Center GPU Max 1100", "xe-hpc"),
    (0x56C0, 0x56C0, "Intel Data Center GPU Flex 170", "xe-hpg"),
    (0x56C1, 0x56C1, "Intel Data Center GPU Flex 140", "xe-hpg"),
    (0x5690, 0x56BF, "Intel Arc A-series", "xe-hpg"),
    (0xE200, 0xE2FF, "Intel Arc B-series", "xe2-hpg"),
)


def detect(host: Host) -> Detection:
    """Discrete Intel GPUs, in bus order. Gaudi is named as what it is: no lane has software for it."""
    gpus = [device for device in pci.of_vendor(host, _VENDOR) if device.kind != pci.COMPUTE]
    devices = [device for device in gpus if not _integrated(device)]
    gaudi = _gaudi(pci.of_vendor(host, _HABANA))
    if not devices:
        return Detection(problems=gaudi)
    nodes = _nodes(host)
    listed, problems = _listed(host)
    integrated = len(gpus) - len(devices)
    accelerators = [_accelerator(host, n, device, listed.get(device.bdf, {})) for n, device in enumerate(devices)]
    accelerators = [_checked(a, nodes) for a in _with_nodes(accelerators, nodes, integrated)]
    drivers = {device.driver for device in devices if device.driver in _KERNEL_DRIVERS}
    found = version(host.read(f"/sys/module/{sorted(drivers)[0]}/version").text) if drivers else None
    return Detection(
        accelerators=tuple(accelerators),
        driver={"version": found, "module": ", ".join(sorted(str(d) for d in drivers)) or None},
        problems=(*_problems(devices, accelerators, nodes), *problems, *gaudi),
        nodes=tuple(nodes.values()),
        host_paths=frozenset(path for path in (_BY_PATH,) if host.exists(path)),
    )


def _integrated(device: PciDevice) -> bool:
    """Graphics inside a processor sits at 00:02.0, whatever its class; discrete cards are behind a bridge."""
    return device.bdf.endswith(":00:02.0") and _chip(device) is None


def _gaudi(cards: Sequence[PciDevice]) -> tuple[Problem, ...]:
    if not cards:
        return ()
    ids = ", ".join(sorted({f"1da3:{card.device:04x}" for card in cards}))
    return (
        Problem(
            code="unknown-device",
            severity="error",
            message=f"{len(cards)} x Intel Gaudi ({ids}): fl does not support it, no lane has software for it",
            remedy="Gaudi is trained on with Intel's own containers (`--runtime=habana`).",
        ),
    )


def _chip(device: PciDevice) -> tuple[str, str] | None:
    return next(((name, arch) for low, high, name, arch in _CHIPS if low <= device.device <= high), None)


def _nodes(host: Host) -> dict[str, Node]:
    found = [host.node(f"/dev/dri/{name}") for name in host.node_names("/dev/dri") if _NODE.fullmatch(name)]
    return {node.path: node for node in found if node is not None}


def _listed(host: Host) -> tuple[dict[str, dict[str, str]], list[Problem]]:
    """`xpu-smi discovery`: PCI address → its fields."""
    ran = host.run(["xpu-smi", "discovery"])
    if ran.state == "slow":
        return {}, [_problem("driver-slow", "warning", "xpu-smi gave no answer in time", "Run `xpu-smi discovery` by hand.")]
    if ran.state == "done" and not ran.ok:
        return {}, [
            _problem(
                "tool-failed",
                "warning",
                f"xpu-smi fails: {known(ran.stdout + ran.stderr) or f'exit code {ran.returncode}'}",
                "Run `xpu-smi discovery` by hand.",
            )
        ]
    return parse_discovery(ran.stdout), []


def parse_discovery(text: str) -> dict[str, dict[str, str]]:
    """The table's `Key: value` cells, by PCI address."""
    found: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for line in rows(text):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 2:
            continue
        if cells[0].isdigit():
            fields = {}
        key, colon, value = cells[1].partition(":")
        if colon and (word := known(value)):
            fields[key.strip()] = word
        if (address := bdf(fields.get("PCI BDF Address"))) is not None:
            found[address] = fields
    return found


def _accelerator(host: Host, index: int, device: PciDevice, fields: Mapping[str, str]) -> Accelerator:
    name, arch = _chip(device) or (None, None)
    render, card = pci.drm_nodes(host, device)
    evidence = [Evidence(device.path, f"8086:{device.device:04x}, driver {device.driver or 'none'}")]
    if fields:
        evidence.append(Evidence("xpu-smi discovery", fields.get("Device Name", "")))
    return Accelerator(
        lane="xpu",
        index=index,
        name=fields.get("Device Name") or name,
        arch=arch,
        memory_mib=_memory(host, device, card),
        uuid=fields.get("SOC UUID") or fields.get("UUID"),
        pci=device.bdf,
        numa_node=device.numa_node,
        nodes=tuple(node for node in (render, card or _card(fields)) if node),
        usable=None if device.driver in _KERNEL_DRIVERS else False,
        evidence=tuple(evidence),
    )


def _memory(host: Host, device: PciDevice, card: str | None) -> int | None:
    """MiB, of all tiles of a card: the driver xe tells each tile's, i915 (where it tells at all) the card's."""
    tiles = [name for name in host.names(device.path) if re.fullmatch(r"tile\d", name)]
    sizes = [whole(host.read(f"{device.path}/{tile}/physical_vram_size_bytes").text, 15) or 0 for tile in tiles]
    if not sum(sizes) and card is not None:
        sizes = [whole(host.read(f"{device.path}/drm/{card.rsplit('/', 1)[1]}/lmem_total_bytes").text, 15) or 0]
    return sum(sizes) >> 20 or None


def _card(fields: Mapping[str, str]) -> str | None:
    path = fields.get("DRM Device", "")
    return path if re.fullmatch(r"/dev/dri/card\d{1,4}", path) else None


def _with_nodes(accelerators: list[Accelerator], nodes: Mapping[str, Node], others: int) -> list[Accelerator]:
    """Render nodes that no file ties to a device: in bus order, as the kernel numbers them, where their numbers agree."""
    render = sorted((path for path in nodes if "renderD" in path), key=lambda path: int(path.rsplit("D", 1)[1]))
    taken = {path for a in accelerators for path in a.nodes}
    free = [path for path in render if path not in taken]
    without = [n for n, a in enumerate(accelerators) if not any("renderD" in path for path in a.nodes)]
    if others or len(free) != len(without):
        return accelerators
    joined = list(accelerators)
    for n, path in zip(without, free, strict=True):
        joined[n] = replace(joined[n], nodes=(path, *joined[n].nodes))
    return joined


def _checked(a: Accelerator, nodes: Mapping[str, Node]) -> Accelerator:
    render = [path for path in a.nodes if "renderD" in path]
    opens = [nodes[path].openable if path in nodes else False for path in render]
    evidence = tuple(
        Evidence(path, "opens" if nodes[path].openable else f"does not open ({nodes[path].error})") for path in render if path in nodes
    )
    usable = a.usable
    if usable is not False:
        usable = False if False in opens or not nodes else None if None in opens or not render else True
    return replace(a, usable=usable, evidence=a.evidence + evidence)


def _problems(devices: Sequence[PciDevice], accelerators: Sequence[Accelerator], nodes: Mapping[str, Node]) -> list[Problem]:
    found: list[Problem] = []
    if not any(device.driver for device in devices):
        found.append(
            _problem(
                "no-driver",
                "error",
                "an Intel GPU is present, its kernel driver is not loaded",
                "`sudo modprobe xe` or `sudo modprobe i915`",
            )
        )
    closed = sorted(path for a in accelerators for path in a.nodes if "renderD" in path and path in nodes and nodes[path].openable is False)
    if closed:
        node = nodes[closed[0]]
        found.append(
            _problem(
                "no-permission",
                "error",
                f"{closed[0]}{f' and {len(closed) - 1} more' if len(closed) > 1 else ''} cannot be opened ({node.error or 'refused'})",
                f"Join the group that owns it (gid {node.gid}, often render): `sudo usermod -aG render $USER`, then log in again.",
            )
        )
    if any(device.driver in _KERNEL_DRIVERS for device in devices) and not any("renderD" in path for path in nodes):
        found.append(
            _problem(
                "nodes-missing",
                "error",
                "the driver is loaded, but /dev/dri has no render node",
                "In a container: start it with `--device /dev/dri/renderD…`.",
            )
        )
    strange = sorted({f"{device.device:#06x}" for device in devices if _chip(device) is None})
    if strange:
        found.append(
            _problem(
                "unknown-device",
                "warning",
                f"an Intel GPU with a PCI device id that is not known: {', '.join(strange)}",
                "Say which one it is in an issue, with the folder of `fl hw --record DIR`.",
            )
        )
    return found


def _problem(code: str, severity: str, message: str, remedy: str) -> Problem:
    return Problem(code=code, severity="error" if severity == "error" else "warning", lane="xpu", message=message, remedy=remedy)


def grants(chosen: Sequence[Accelerator], hardware: Hardware, engine: EngineFacts) -> Grants:
    """The chosen devices' nodes; with several, /dev/dri/by-path, by which oneCCL finds them. Level Zero's user space is in the image."""
    if engine.name == "host":
        return Grants(environment=visibility(chosen, hardware), isolated=False)
    devices = tuple(dict.fromkeys(path for a in chosen for path in a.nodes))
    groups = group_grants(devices, hardware, engine, "xpu")
    nameless = tuple(
        _problem(
            "nodes-missing",
            "error",
            f"the render node of GPU {a.index} ({a.pci}) is not known",
            "Look at `ls -l /dev/dri/by-path`, or use `--engine host`.",
        )
        for a in chosen
        if not any("renderD" in path for path in a.nodes)
    )
    mounts = (Mount(source=_BY_PATH, target=_BY_PATH),) if len(chosen) > 1 else ()
    absent = tuple(
        _problem(
            "nodes-missing",
            "error",
            f"{_BY_PATH} is not on this machine: oneCCL needs it for several GPUs",
            "It is made by udev; or use one GPU: `--devices 0`.",
        )
        for mount in mounts
        if mount.source not in hardware.host_paths
    )
    missing = missing_nodes(devices, hardware, "xpu", "Load the driver (xe or i915), or start this container with its nodes.")
    return Grants(
        devices=devices,
        groups=groups.groups,
        flags=groups.flags,
        mounts=mounts,
        environment={HIERARCHY: "COMPOSITE"},
        problems=groups.problems + nameless + missing + absent,
    )


def visibility(chosen: Sequence[Accelerator], hardware: Hardware) -> Mapping[str, str]:
    """Level Zero lists discrete GPUs first, in bus order; one device a card, also of cards with two tiles."""
    return {HIERARCHY: "COMPOSITE", "ZE_AFFINITY_MASK": ",".join(str(a.index) for a in chosen)}
