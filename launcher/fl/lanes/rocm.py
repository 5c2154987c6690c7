"""AMD: KFD nodes and the PCI bus first, AMD's tools where those say too little."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fl.grants import EngineFacts, Grants
from fl.hardware import Accelerator, Detection, Evidence, Hardware, Node, Partition, Problem
from fl.host import Host
from fl.lanes import kfd, pci
from fl.lanes.amd_chips import CHIPS, DISCRETE, DISPLAY_ONLY
from fl.lanes.groups import group_grants, missing_nodes
from fl.lanes.kfd import KfdNode
from fl.lanes.pci import PciDevice
from fl.lanes.rocm_visible import restriction
from fl.lanes.values import known, product, version, whole

if TYPE_CHECKING:  # the tools' parsers are loaded where there is something to ask
    from fl.lanes.rocm_smi import AmdAnswer, AmdReport

__all__ = ["DRIVER", "EXCLUSIVE", "PARTITIONS_TOGETHER", "TITLE", "detect", "grants", "restriction", "visibility"]

TITLE = "AMD"
DRIVER = "amdgpu"
EXCLUSIVE = False
PARTITIONS_TOGETHER = True
_VENDOR: Final = 0x1002
_KFD: Final = "/dev/kfd"
_DRIVER_FOLDER: Final = "/sys/module/amdgpu/drivers/pci:amdgpu"
_MODES: Final = {2: "dpx", 3: "tpx", 4: "qpx", 8: "cpx"}
_RENDER: Final = re.compile(r"renderD\d{3,4}")


def detect(host: Host) -> Detection:
    """GPUs and compute partitions, in KFD's order; what only the bus or a tool shows comes after."""
    devices = _devices(host)
    nodes = _nodes(host)
    topology = kfd.scan(host)
    if not (devices or topology or _KFD in nodes):
        return Detection()
    from fl.lanes.rocm_smi import AmdAnswer, ask

    accelerators = _from_topology(host, topology, devices)
    seen = {node.bus for node in topology if node.state == "gpu"}
    rest = [device for device in devices if device.bdf.rsplit(".", 1)[0] not in seen]
    if len([a for a in accelerators if a.pci is None]) < len(rest):
        accelerators += [_from_bus(host, device, len(topology) + n) for n, device in enumerate(rest)]
    answer = AmdAnswer()
    if not accelerators or any(a.arch is None or a.memory_mib is None for a in accelerators if a.name or a.pci):
        answer = ask(host)
        accelerators = _with_tool(accelerators, answer)
    accelerators = _with_nodes(accelerators, nodes)
    loaded = _KFD in nodes or bool(topology) or any(device.driver == "amdgpu" for device in devices)
    checked = [_checked(a, nodes, loaded, answer.slow) for a in accelerators]
    driver = version(host.read("/sys/module/amdgpu/version").text) or next((gpu.driver for gpu in answer.gpus if gpu.driver), None)
    problems = _problems(checked, nodes, topology, devices, loaded) + _tool_problems(answer, bool(checked)) + _mixed(checked, topology)
    return Detection(
        accelerators=tuple(checked),
        driver={"version": driver} if loaded or checked else None,
        problems=tuple(problems),
        nodes=tuple(nodes.values()),
    )


def _devices(host: Host) -> tuple[PciDevice, ...]:
    """Accelerator classes; of display controllers those whose id is a chip that ROCm runs on, or at least a discrete one without a screen
    (graphics inside a processor has class 0x0380 too, where another GPU is the screen's)."""
    found = pci.of_vendor(host, _VENDOR)
    return tuple(
        device
        for device in found
        if device.kind == pci.COMPUTE or device.device in CHIPS or (device.kind == 0x0380 and device.device in DISCRETE)
    )


def _nodes(host: Host) -> dict[str, Node]:
    paths = [f"/dev/dri/{name}" for name in host.node_names("/dev/dri") if _RENDER.fullmatch(name)]
    found = [host.node(path) for path in (_KFD, *paths)]
    return {node.path: node for node in found if node is not None}


def _from_topology(host: Host, topology: Sequence[KfdNode], devices: Sequence[PciDevice]) -> list[Accelerator]:
    """One accelerator for each GPU node; an unreadable node counts as one only while the bus has a GPU that no node claims."""
    held = kfd.busy(host)
    by_function = {device.bdf: device for device in devices}
    good = [node for node in topology if node.state == "gpu"]
    spare = max(0, len(devices) - len({node.bus for node in good}))
    parents: dict[tuple[str | None, int], int] = {}
    sizes = Counter((node.bus, node.unique_id) for node in good)
    found: list[Accelerator] = []
    for index, node in enumerate(topology):
        if node.state != "gpu":
            if spare > 0:
                spare -= 1
                found.append(
                    Accelerator(
                        lane="rocm",
                        index=index,
                        usable=False if node.state == "refused" else None,
                        evidence=(Evidence(f"{node.path}/properties", node.error or "not in the expected form"),),
                    )
                )
            continue
        if node.arch in DISPLAY_ONLY:
            continue
        key = (node.bus, node.unique_id)
        parent = parents.setdefault(key, len(parents))
        device = by_function.get(node.pci or "") or by_function.get(f"{node.bus}.0")
        partition = _partition(host, node, device or by_function.get(f"{node.bus}.0"), sizes[key], parent)
        name, arch = CHIPS.get(node.device or 0, (None, None))
        found.append(
            Accelerator(
                lane="rocm",
                index=index,
                name=_product_name(host, device) or name,
                arch=node.arch or arch,
                memory_mib=_memory(host, node, device),
                uuid=f"GPU-{node.unique_id:016x}" if node.unique_id else None,
                pci=node.pci,
                numa_node=device.numa_node if device else None,
                nodes=(f"/dev/dri/renderD{node.render}",) if node.render else (),
                partition=partition,
                busy=None if held is None or node.gpu_id is None else held.get(node.gpu_id, False),
                evidence=(
                    Evidence(
                        f"{node.path}/properties", f"device {node.device or 0:#06x}, {node.arch or 'no gfx_target_version'}, at {node.pci}"
                    ),
                ),
            )
        )
    return found


def _partition(host: Host, node: KfdNode, device: PciDevice | None, siblings: int, parent: int) -> Partition | None:
    """Partitions share unique id and bus; the driver's file names the mode, else the number of partitions does."""
    mode = memory = None
    if device is not None:
        mode = _setting(host, device, "current_compute_partition")
        memory = _setting(host, device, "current_memory_partition")
    whole_device = mode.upper() == "SPX" if mode else siblings == 1 or node.unique_id == 0
    if whole_device:
        return None
    mode = mode or ("cpx" if node.shape[0] == 1 else _MODES.get(siblings))
    profile = "_".join(part.lower() for part in (mode, memory) if part) or None
    return Partition(kind="cpx", profile=profile, parent=parent)


def _setting(host: Host, device: PciDevice, name: str) -> str | None:
    """A file of the driver, which shows a device's folder in two places."""
    texts = (host.read(f"{folder}/{name}").text for folder in (device.path, f"{_DRIVER_FOLDER}/{device.bdf}"))
    return next((value for value in map(known, texts) if value), None)


def _memory(host: Host, node: KfdNode, device: PciDevice | None) -> int | None:
    """MiB. Graphics inside a processor (Strix Halo) computes in the system's memory, as far as the driver's translation table goes."""
    if not node.apu or device is None:
        return node.memory_mib
    sizes = [whole(host.read(f"{device.path}/{name}").text) or 0 for name in ("mem_info_vram_total", "mem_info_gtt_total")]
    return max(node.memory_mib or 0, *(size >> 20 for size in sizes)) or None


def _product_name(host: Host, device: PciDevice | None) -> str | None:
    return product(host.read(f"{device.path}/product_name").text) if device else None


def _from_bus(host: Host, device: PciDevice, index: int) -> Accelerator:
    name, arch = CHIPS.get(device.device, (None, None))
    render, _ = pci.drm_nodes(host, device)
    return Accelerator(
        lane="rocm",
        index=index,
        name=_product_name(host, device) or name,
        arch=arch,
        pci=device.bdf,
        numa_node=device.numa_node,
        nodes=(render,) if render else (),
        usable=None if device.driver == "amdgpu" else False,
        evidence=(Evidence(device.path, f"1002:{device.device:04x}, driver {device.driver or 'none'}"),),
    )


def _with_tool(accelerators: list[Accelerator], answer: AmdAnswer) -> list[Accelerator]:
    """Gaps filled by the tool, matched by PCI address; its own list where the kernel showed nothing."""
    if not accelerators:
        return [_from_tool(gpu, answer.source) for gpu in answer.gpus]
    by_address = {gpu.pci: gpu for gpu in answer.gpus if gpu.pci}
    filled = []
    for a in accelerators:
        gpu = by_address.get(a.pci) if a.pci else None
        if gpu is None or a.partition is not None:
            filled.append(a)
            continue
        tool = _from_tool(gpu, answer.source)
        filled.append(
            replace(
                a,
                name=tool.name or a.name,
                arch=a.arch or tool.arch,
                memory_mib=a.memory_mib or tool.memory_mib,
                uuid=a.uuid or tool.uuid,
                evidence=a.evidence + tool.evidence,
            )
        )
    return filled


def _from_tool(gpu: AmdReport, source: str) -> Accelerator:
    name, arch = CHIPS.get(gpu.device or 0, (None, None))
    unique = gpu.unique_id.lower().removeprefix("0x") if gpu.unique_id else ""
    return Accelerator(
        lane="rocm",
        index=gpu.index,
        name=product(gpu.name) or name,
        arch=gpu.arch or arch,
        memory_mib=gpu.memory_mib,
        uuid=f"GPU-{unique}" if re.fullmatch(r"[0-9a-f]{8,16}", unique) and int(unique, 16) else None,
        pci=gpu.pci,
        evidence=(Evidence(source, f"GPU {gpu.index}: {gpu.name or gpu.arch or 'unnamed'}"),),
    )


def _with_nodes(accelerators: list[Accelerator], nodes: Mapping[str, Node]) -> list[Accelerator]:
    """Render nodes for devices that no file ties to one: in order, where their numbers agree."""
    taken = {path for a in accelerators for path in a.nodes}
    free = sorted((path for path in nodes if path != _KFD and path not in taken), key=lambda path: int(path.rsplit("D", 1)[1]))
    without = [a for a in accelerators if not a.nodes and a.usable is not False]
    if not without or len(without) != len(free):
        return accelerators
    pairs = {id(a): path for a, path in zip(without, free, strict=True)}
    return [replace(a, nodes=(pairs[id(a)],)) if id(a) in pairs else a for a in accelerators]


def _checked(a: Accelerator, nodes: Mapping[str, Node], loaded: bool, slow: bool) -> Accelerator:
    """Compute needs /dev/kfd and the render node read-write; AMD's tools succeed without either, so they are no proof."""
    needed = (_KFD, *a.nodes)
    evidence = tuple(Evidence(p, "opens" if nodes[p].openable else f"does not open ({nodes[p].error})") for p in needed if p in nodes)
    opens = [nodes[p].openable if p in nodes else False for p in needed]
    usable: bool | None = a.usable
    if usable is not False and a.pci is None and not a.nodes and not a.name and not a.arch:
        usable = None
    elif usable is not False:
        usable = False if not loaded or False in opens else None if None in opens or slow else True
    return replace(a, usable=usable, evidence=a.evidence + evidence)


def _problems(
    accelerators: Sequence[Accelerator], nodes: Mapping[str, Node], topology: Sequence[KfdNode], devices: Sequence[PciDevice], loaded: bool
) -> list[Problem]:
    found: list[Problem] = []
    if devices and not loaded:
        other = next((device.driver for device in devices if device.driver), None)
        found.append(
            _problem(
                "no-driver",
                "error",
                "an AMD accelerator is present, the amdgpu driver is not loaded" + (f" ({other} has it)" if other else ""),
                "Install ROCm's kernel driver (amdgpu-dkms) or load it: `sudo modprobe amdgpu`.",
            )
        )
    others = sorted({str(device.driver) for device in devices if loaded and device.driver not in (None, "amdgpu")})
    if others:
        found.append(
            _problem(
                "no-driver",
                "warning",
                f"an AMD accelerator belongs to the kernel driver {others[0]}, not to amdgpu",
                "With vfio-pci it is meant for a virtual machine; to use it here, bind it to amdgpu.",
            )
        )
    used = [path for a in accelerators for path in (_KFD, *a.nodes)]
    closed = sorted({path for path in used if path in nodes and nodes[path].openable is False})
    if closed:
        more = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
        gids = sorted({nodes[path].gid for path in closed})
        found.append(
            _problem(
                "no-permission",
                "error",
                f"{closed[0]}{more} cannot be opened ({nodes[closed[0]].error or 'refused'})",
                f"Join the group that owns it (gid {', '.join(map(str, gids))}, often render): `sudo usermod -aG render $USER`.",
            )
        )
    absent = sorted({path for path in used if path not in nodes})
    some = any(a.usable is not False for a in accelerators)
    if absent and loaded:
        found.append(
            _problem(
                "nodes-missing",
                "warning" if some else "error",
                f"the driver is loaded, but {absent[0]}{f' and {len(absent) - 1} more' if len(absent) > 1 else ''} is not here",
                "In a container: start it with `--device /dev/kfd --device /dev/dri/renderD…`.",
            )
        )
    garbage = [node for node in topology if node.state == "garbage"]
    refused = [node for node in topology if node.state == "refused"]
    if garbage:
        found.append(
            _problem(
                "redacted-or-malformed",
                "warning",
                f"{garbage[0].path}/properties is not in the expected form ({len(garbage)} such nodes)",
                "The other devices are not affected; a reboot of the machine usually repairs the topology.",
            )
        )
    if refused:
        found.append(
            _problem(
                "no-permission",
                "warning",
                f"the kernel refuses {len(refused)} KFD nodes ({refused[0].error})",
                "Devices of other containers look so. If it should be yours: start the container with its render node.",
            )
        )
    return found


def _tool_problems(answer: AmdAnswer, any_device: bool) -> list[Problem]:
    if answer.slow:
        return [_problem("driver-slow", "warning", f"{answer.source} gave no answer in time", "Run it by hand, and look at `sudo dmesg`.")]
    found: list[Problem] = []
    if answer.malformed and not answer.gpus:
        found.append(
            _problem("redacted-or-malformed", "warning", answer.malformed, "Run the tool by hand; a wrapper may change its output.")
        )
    if answer.failed and not answer.gpus and any_device:
        found.append(_problem("tool-failed", "warning", answer.failed, "Run the tool by hand, and look at `sudo dmesg`."))
    return found


def _mixed(accelerators: Sequence[Accelerator], topology: Sequence[KfdNode]) -> list[Problem]:
    shapes = {(node.arch, node.device): set[tuple[int, int]]() for node in topology if node.state == "gpu"}
    for node in topology:
        if node.state == "gpu":
            shapes[node.arch, node.device].add(node.shape)
    if not any(a.partition for a in accelerators) or all(len(shape) == 1 for shape in shapes.values()):
        return []
    return [
        _problem(
            "partition-mixed",
            "warning",
            "compute partitions of unequal size, or beside whole devices",
            "Choose equal ones with `--devices`.",
        )
    ]


def _problem(code: str, severity: str, message: str, remedy: str) -> Problem:
    return Problem(code=code, severity="error" if severity == "error" else "warning", lane="rocm", message=message, remedy=remedy)


def grants(chosen: Sequence[Accelerator], hardware: Hardware, engine: EngineFacts) -> Grants:
    """/dev/kfd and the chosen render nodes only: that is what isolates. The driver's user space comes from the image.

    Apptainer too, instead of its --rocm, which maps every GPU and puts the host's libraries before the image's own.
    """
    if engine.name == "host":
        return Grants(environment=visibility(chosen, hardware), isolated=False)
    devices = (_KFD, *dict.fromkeys(path for a in chosen for path in a.nodes))
    groups = group_grants(devices, hardware, engine, "rocm")
    nameless = tuple(
        _problem(
            "nodes-missing",
            "error",
            f"the render node of GPU {a.index} ({a.pci or a.name}) is not known",
            "Use `--engine host`, or look at `ls -l /dev/dri/by-path`.",
        )
        for a in chosen
        if not a.nodes
    )
    missing = missing_nodes(devices, hardware, "rocm", "Load the driver (`sudo modprobe amdgpu`), or start this container with its nodes.")
    problems = groups.problems + nameless + missing
    return Grants(devices=devices, groups=groups.groups, flags=groups.flags, memory_policy=True, problems=problems)


def visibility(chosen: Sequence[Accelerator], hardware: Hardware) -> Mapping[str, str]:
    """By ROCr's level: unique ids where every device has its own, else indices (partitions share the id of their device)."""
    lane = hardware.of_lane("rocm")
    counts = Counter(a.uuid for a in lane)
    # HIP counts again what ROCr leaves: all of it, whatever the caller's own HIP_VISIBLE_DEVICES was.
    second = {"HIP_VISIBLE_DEVICES": ",".join(str(n) for n in range(len(chosen)))}
    if all(a.uuid and counts[a.uuid] == 1 for a in chosen):
        return {"ROCR_VISIBLE_DEVICES": ",".join(a.uuid or "" for a in chosen), **second}
    # Nodes that the kernel refuses are not counted by the runtime.
    refused = [a.index for a in lane if a.usable is False and a.pci is None]
    places = [a.index - sum(1 for index in refused if index < a.index) for a in chosen]
    return {"ROCR_VISIBLE_DEVICES": ",".join(map(str, places)), **second}
