"""What the kernel shows of NVIDIA without asking the driver: the module, the bus, the device nodes; and what marks a Jetson or WSL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fl.hardware import Node
from fl.host import Host
from fl.lanes import pci
from fl.lanes.pci import PciDevice
from fl.lanes.values import bdf, known, version, whole

_VENDOR: Final = 0x10DE
_MODULE_LINE: Final = re.compile(r"Kernel Module(?: for \S+)?\s+(\d{1,4}(?:\.\d{1,6}){1,2})\b")
_COMPANIONS: Final = re.compile(r"nvidia(ctl|-uvm|-uvm-tools|-modeset)")
_TEGRA: Final = (("tegra264", "sm_110"), ("tegra234", "sm_87"), ("tegra194", "sm_72"), ("tegra186", "sm_62"), ("tegra210", "sm_53"))
_COMPATIBLE: Final = "/proc/device-tree/compatible"
_FIRST_DRIVER: Final = 100


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel shows of NVIDIA without asking the driver."""

    devices: tuple[PciDevice, ...]
    loaded: bool
    version: str | None
    version_source: str
    tegra: bool
    tegra_arch: str | None
    minors: dict[str, int]
    """PCI address → number of its /dev/nvidiaN."""
    models: dict[str, str]
    uuids: dict[str, str]
    nodes: dict[str, Node]

    @property
    def wsl(self) -> bool:
        """Windows' driver, seen through /dev/dxg: there are no /dev/nvidia nodes and no kernel module."""
        return "/dev/dxg" in self.nodes


def look(host: Host) -> Kernel:
    """Reads /proc/driver/nvidia, /sys and /dev."""
    line = (host.read("/proc/driver/nvidia/version").text or "").split("\n")[0]
    match = _MODULE_LINE.search(line)
    module = version(host.read("/sys/module/nvidia/version").text)
    # A Jetson's module line carried the L4T release (34.1.1) before it carried a driver's version (540.4.0).
    l4t = match is not None and int(match[1].split(".")[0]) < _FIRST_DRIVER
    tegra = l4t or host.exists("/etc/nv_tegra_release") or "nvidia,tegra" in (host.read(_COMPATIBLE).text or "")
    found = module or (match[1] if match and not l4t else None)
    names = [
        name for name in host.node_names("/dev") if re.fullmatch(r"nvidia\d{1,4}", name) or _COMPANIONS.fullmatch(name) or name == "dxg"
    ]
    paths = [f"/dev/{name}" for name in names] + [f"/dev/nvidia-caps/{name}" for name in host.node_names("/dev/nvidia-caps")]
    minors, models, uuids = {}, {}, {}
    for name in host.names("/proc/driver/nvidia/gpus"):
        text = host.read(f"/proc/driver/nvidia/gpus/{name}/information").text or ""
        fields = {key.strip(): value.strip() for key, colon, value in (row.partition(":") for row in text.splitlines()) if colon}
        address, minor = bdf(name), whole(fields.get("Device Minor"), 4)
        if address and minor is not None:
            minors[address] = minor
        if address and (model := known(fields.get("Model"))):
            models[address] = model
        # Some drivers write question marks for others than root.
        if address and re.fullmatch(r"GPU-[0-9a-f-]{36}", fields.get("GPU UUID", "")):
            uuids[address] = fields["GPU UUID"]
    devices = pci.of_vendor(host, _VENDOR)
    numbers = sorted(int(name[6:]) for name in names if re.fullmatch(r"nvidia\d{1,4}", name))
    bound = [device for device in devices if device.driver == "nvidia"]
    if not minors and len(bound) == len(numbers):
        minors = {device.bdf: number for device, number in zip(bound, numbers, strict=True)}
    return Kernel(
        devices=devices,
        loaded=bool(line or module),
        version=found,
        tegra=tegra,
        tegra_arch=next((arch for chip, arch in _TEGRA if tegra and chip in (host.read(_COMPATIBLE).text or "")), None),
        minors=minors,
        models=models,
        uuids=uuids,
        version_source="/sys/module/nvidia/version" if module else "/proc/driver/nvidia/version",
        nodes={node.path: node for path in paths if (node := host.node(path)) is not None},
    )
