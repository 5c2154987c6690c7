"""Huawei Ascend: device files and the PCI id first (it names the generation), npu-smi and the driver's version files second."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from fl.hardware import Accelerator, Detection, Evidence, Node, Partition, Problem
from fl.host import Host, Ran
from fl.lanes import pci
from fl.lanes.ascend_grants import FILES, INSTALL_INFO, MANAGERS, NETWORK, grants, visibility
from fl.lanes.ascend_visible import restriction
from fl.lanes.pci import PciDevice
from fl.lanes.values import known, numbers, version

if TYPE_CHECKING:  # the table's parser is loaded where there is a card
    from fl.lanes.npu_smi import NpuReport, NpuTable

__all__ = ["DRIVER", "EXCLUSIVE", "PARTITIONS_TOGETHER", "TITLE", "detect", "grants", "restriction", "visibility"]

TITLE = "Ascend"
DRIVER = "ascend"
EXCLUSIVE = True
PARTITIONS_TOGETHER = True
"""A container owns its cards alone: one that is in use makes initialisation fail for all of them (-8020)."""
_VENDOR: Final = 0x19E5
_CHIPS: Final = {
    0xD100: "ascend310",
    0xD105: "ascend310b",
    0xD500: "ascend310p",
    0xD801: "ascend910",
    0xD802: "ascend910b",
    0xD803: "ascend910_93",
}
_NAMES: Final = (
    (r"(Ascend ?)?910(_?93\d*.*|C\d?)", "ascend910_93"),
    (r"(Ascend ?)?(910B\d.*|A2G\d.*)", "ascend910b"),
    (r"(Ascend ?)?950.*", "ascend950"),
    (r"(Ascend ?)?(310P\d?.*|I2\d?)", "ascend310p"),
    (r"(Ascend ?)?310B\d?.*", "ascend310b"),
    (r"(Ascend ?)?310", "ascend310"),
    # "910B" without a digit is the first generation, as is 910A; the bare "Ascend910" is also what A3 prints (with Phy-ID).
    (r"(Ascend ?)?910(A|B|ProA|ProB|PremiumA)", "ascend910"),
)
_OTHERS: Final = (
    "davinci_manager_docker",
    "dvpp_cmdlist",
    "svm0",
    "ts_aisle",
    "upgrade",
    "sys",
    "vdec",
    "vpc",
    "pngd",
    "venc",
    "log_drv",
    "acodec",
    "ai",
    "ao",
    "vo",
    "hdmi",
)
_FIRST_VIRTUAL: Final = 100
_PREFIX: Final = "/usr/local/Ascend"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found before anything is concluded."""

    devices: tuple[PciDevice, ...]
    nodes: dict[str, Node]
    table: NpuTable
    ran: Ran
    prefix: str

    @property
    def in_use(self) -> bool:
        """The runtime refuses because another container has a card."""
        text = self.ran.stdout + self.ran.stderr
        return self.ran.state == "done" and not self.ran.ok and ("-8020" in text or "device is used" in text)


def detect(host: Host) -> Detection:
    """Chips (dies), numbered as their device files."""
    devices = tuple(device for device in pci.of_vendor(host, _VENDOR) if device.kind == pci.COMPUTE)
    nodes = _nodes(host)
    if not devices and not any(_number(path) is not None for path in nodes):
        return Detection()
    from fl.lanes.npu_smi import parse

    ran = host.run(["npu-smi", "info"])
    table = parse(ran.stdout)
    if not ran.ok:
        ran, table = _mapping(host, ran)
    facts = Facts(devices, nodes, table, ran, _prefix(host))
    driver, firmware, mismatch = _versions(host, facts)
    accelerators = [_checked(a, facts, bool(mismatch)) for a in _accelerators(facts)]
    problems = _problems(facts, accelerators) + mismatch
    wanted = (*(f"{facts.prefix}/{name}" for name in FILES), "/usr/local/dcmi", "/usr/local/bin/npu-smi", INSTALL_INFO, NETWORK)
    return Detection(
        accelerators=tuple(accelerators),
        driver={"version": driver, "firmware": firmware},
        problems=tuple(problems),
        nodes=tuple(nodes.values()),
        host_paths=frozenset(path for path in wanted if host.exists(path)),
    )


def _mapping(host: Host, info: Ran) -> tuple[Ran, NpuTable]:
    """Names from `npu-smi info -m`, only where `npu-smi info` was not had for no fault of the machine; or how that call failed."""
    from fl.lanes.npu_smi import NpuTable, parse_mapping

    ran = host.run(["npu-smi", "info", "-m"]) if info.state == "unrecorded" else info
    return (info, parse_mapping(ran.stdout)) if ran.ok else (ran, NpuTable())


def _nodes(host: Host) -> dict[str, Node]:
    own = [n for n in host.node_names("/dev") if re.fullmatch(r"v?davinci\d{1,4}", n) or f"/dev/{n}" in MANAGERS]
    paths = [f"/dev/{name}" for name in own]
    if own:
        paths += [f"/dev/{name}" for name in _OTHERS]
        paths += [f"/dev/{folder}/{name}" for folder in ("uburma", "ummu") for name in host.node_names(f"/dev/{folder}")]
    return {node.path: node for path in paths if (node := host.node(path)) is not None}


def _number(path: str) -> int | None:
    match = re.fullmatch(r"/dev/v?davinci(\d{1,4})", path)
    return int(match[1]) if match else None


def _prefix(host: Host) -> str:
    text = host.read(INSTALL_INFO).text or ""
    match = re.search(r"^Driver_Install_Path_Param=(/[\w./-]{1,200})\s*$", text, re.M)
    return match[1].rstrip("/") if match else _PREFIX


def _fields(host: Host, path: str) -> Mapping[str, str]:
    lines = (host.read(path).text or "").splitlines()
    return {key.strip(): value.strip() for key, equals, value in (line.partition("=") for line in lines) if equals}


def _versions(host: Host, facts: Facts) -> tuple[str | None, str | None, list[Problem]]:
    """(driver, firmware, a problem when the driver's own range excludes the firmware: npu-smi looks fine then)."""
    own = _fields(host, f"{facts.prefix}/driver/version.info")
    firmware = version(_fields(host, f"{facts.prefix}/firmware/version.info").get("Version"))
    driver = version(own.get("package_version")) or version(own.get("Version")) or facts.table.version
    match = re.fullmatch(r"\[\s*([\w.]{1,40})\s*,\s*([\w.]{1,40})\s*\]", own.get("compatible_version_fw", ""))
    if not match or not firmware:
        return driver, firmware, []
    low, high, have = numbers(match[1]), numbers(match[2]), numbers(firmware)
    if low <= have and have[: len(high)] <= high:
        return driver, firmware, []
    return (
        driver,
        firmware,
        [
            _problem(
                "firmware-mismatch",
                "error",
                f"driver {driver} works with firmware {match[1]} to {match[2]}, the cards have {firmware}",
                "Install the firmware that belongs to the driver (Ascend HDK), then restart the machine.",
            )
        ],
    )


def _accelerators(facts: Facts) -> list[Accelerator]:
    """Device files, the table's rows and the bus, joined; what only the bus has is listed too."""
    by_index = {npu.index: npu for npu in facts.table.npus}
    files = {number: path for path in facts.nodes if (number := _number(path)) is not None}
    indices = sorted({*files, *by_index})
    by_address = {device.bdf: device for device in facts.devices}
    claimed = {npu.pci for npu in by_index.values() if npu.pci}
    spare = [device for device in facts.devices if device.bdf not in claimed]
    loose = [index for index in indices if index not in by_index or by_index[index].pci is None]
    # Which chip of the bus a file without a bus address belongs to can be told only when there is one of each.
    paired = {loose[0]: spare[0]} if len(loose) == len(spare) == 1 else {}
    found = []
    for index in indices:
        npu = by_index.get(index)
        device = by_address.get(npu.pci) if npu and npu.pci else paired.get(index)
        found.append(_accelerator(facts, index, files.get(index), npu, device))
    free = (number for number in range(10000) if number not in indices)
    return found + [_accelerator(facts, next(free), None, None, device) for device in spare[len(loose) :]]


def _accelerator(facts: Facts, index: int, path: str | None, npu: NpuReport | None, device: PciDevice | None) -> Accelerator:
    name = npu.name if npu else None
    evidence = [Evidence(device.path, f"19e5:{device.device:04x}, driver {device.driver or 'none'}")] if device else []
    if path:
        node = facts.nodes[path]
        evidence.append(Evidence(path, "opens" if node.openable else f"does not open ({node.error})"))
    if npu:
        evidence.append(Evidence("npu-smi info", f"NPU {npu.npu} chip {npu.chip}: {name}, health {npu.health}"))
    # The host names a virtual card vdavinciN, a container davinciN; either way N counts from 100.
    virtual = path is not None and (path.startswith("/dev/vdavinci") or (_number(path) or 0) >= _FIRST_VIRTUAL)
    return Accelerator(
        lane="ascend",
        index=index,
        name=name,
        arch=_arch(facts, npu, device),
        memory_mib=npu.memory_mib if npu else None,
        pci=device.bdf if device else npu.pci if npu else None,
        numa_node=device.numa_node if device else None,
        nodes=(path,) if path else (),
        partition=Partition(kind="vnpu", profile=None, parent=None) if virtual else None,
        busy=True if facts.in_use else npu.busy if npu else None,
        healthy=None if npu is None or npu.health is None else npu.health.upper() == "OK",
        evidence=tuple(evidence),
    )


def _arch(facts: Facts, npu: NpuReport | None, device: PciDevice | None) -> str | None:
    """The PCI id is exact; product names are reused between generations."""
    if device is not None and device.device in _CHIPS:
        return _CHIPS[device.device]
    if device is None:
        kinds = {_CHIPS.get(d.device) for d in facts.devices}
        if len(kinds) == 1 and None not in kinds:
            return kinds.pop()
    name = npu.name if npu and npu.name else ""
    if re.fullmatch(r"Ascend ?910", name) and facts.table.phy_ids:
        return "ascend910_93"
    return next((arch for pattern, arch in _NAMES if re.fullmatch(pattern, name)), None)


def _checked(a: Accelerator, facts: Facts, mismatch: bool) -> Accelerator:
    needed = [path for path in (*a.nodes, "/dev/davinci_manager") if path in facts.nodes]
    opens = [facts.nodes[path].openable for path in needed]
    state = next((npu.health for npu in facts.table.npus if npu.index == a.index), None)
    if facts.in_use or not a.nodes or False in opens or state in ("Alarm", "Critical"):
        return replace(a, usable=False)
    failed = facts.ran.state == "slow" or (facts.ran.state == "done" and not facts.ran.ok)
    unknown = None in opens or failed or mismatch or a.healthy is False or (a.arch is None and a.name is None and not facts.table.npus)
    return replace(a, usable=None if unknown else True)


def _problems(facts: Facts, accelerators: Sequence[Accelerator]) -> list[Problem]:
    found: list[Problem] = []
    loaded = bool(facts.nodes) or any(device.driver for device in facts.devices)
    if facts.devices and not loaded:
        found.append(
            _problem(
                "no-driver",
                "error",
                "an Ascend accelerator is present, its driver is not loaded",
                "Install the driver and firmware (Ascend HDK).",
            )
        )
    elif any(not a.nodes for a in accelerators):
        found.append(
            _problem(
                "nodes-missing",
                "error" if not any(a.nodes for a in accelerators) else "warning",
                f"the bus shows {len(facts.devices)} chips, /dev has {sum(1 for a in accelerators if a.nodes)} of their files",
                "In a container: start it with `--device /dev/davinciN` and the manager nodes.",
            )
        )
    if facts.in_use:
        found.append(
            _problem(
                "device-busy",
                "error",
                f"a card is in use by another container: {known(facts.ran.stdout + facts.ran.stderr)}",
                "Stop the other container, or map cards that are free: a container owns its cards alone.",
            )
        )
    elif facts.ran.state == "slow":
        found.append(_problem("driver-slow", "warning", "npu-smi gave no answer in time", "Run `npu-smi info` by hand."))
    elif facts.ran.state == "done" and not facts.ran.ok:
        found.append(
            _problem(
                "tool-failed",
                "warning",
                f"npu-smi fails: {known(facts.ran.stdout + facts.ran.stderr) or f'exit code {facts.ran.returncode}'}",
                "Run `npu-smi info` by hand; in a container mount driver/lib64, dcmi and npu-smi.",
            )
        )
    if facts.table.malformed or (facts.ran.ok and not facts.table.npus):
        found.append(
            _problem(
                "redacted-or-malformed",
                "warning",
                f"npu-smi info: {facts.table.malformed or 'no device table'}",
                "Run `npu-smi info` by hand.",
            )
        )
    return found + _node_problems(facts) + _chip_problems(facts, accelerators)


def _node_problems(facts: Facts) -> list[Problem]:
    closed = sorted(
        path for path, node in facts.nodes.items() if node.openable is False and (_number(path) is not None or path in MANAGERS)
    )
    if not closed:
        return []
    node = facts.nodes[closed[0]]
    return [
        _problem(
            "no-permission",
            "error",
            f"{closed[0]}{f' and {len(closed) - 1} more' if len(closed) > 1 else ''} cannot be opened ({node.error or 'refused'})",
            f"Join the group that owns it (gid {node.gid}, often HwHiAiUser), then log in again.",
        )
    ]


def _chip_problems(facts: Facts, accelerators: Sequence[Accelerator]) -> list[Problem]:
    found = [
        _problem(
            "device-unhealthy",
            "error" if a.usable is False else "warning",
            f"Ascend {a.index} ({a.pci or a.name}) is not healthy by npu-smi",
            f"`npu-smi info -t health -i {a.index}` says why.",
        )
        for a in accelerators
        if a.healthy is False
    ]
    strange = sorted(
        {f"{d.device:#06x}" for d in facts.devices if d.device not in _CHIPS and not any(a.pci == d.bdf and a.arch for a in accelerators)}
    )
    if strange:
        found.append(
            _problem(
                "unknown-device",
                "warning",
                f"a Huawei accelerator with a PCI device id that is not known: {', '.join(strange)}",
                "Say which chip it is in an issue, with the folder of `fl hw --record DIR`.",
            )
        )
    if any(npu.masked and a.arch is None for npu in facts.table.npus for a in accelerators if a.index == npu.index):
        found.append(
            _problem(
                "redacted-or-malformed",
                "warning",
                "npu-smi masks the chip's name, and nothing else tells its generation",
                "Run `npu-smi info` by hand.",
            )
        )
    return found


def _problem(code: str, severity: str, message: str, remedy: str) -> Problem:
    return Problem(code=code, severity="error" if severity == "error" else "warning", lane="ascend", message=message, remedy=remedy)
