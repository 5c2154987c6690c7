"""The PCI bus as /sys shows it: what is plugged in. World-readable, also in containers, where it shows the host's devices."""

from __future__ import annotations

import posixpath
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

from fl.host import Host
from fl.lanes.values import bdf, hexadecimal, known

DISPLAY: Final = 0x0300
COMPUTE: Final = 0x1200
_CLASSES: Final = frozenset({DISPLAY, 0x0302, 0x0380, COMPUTE})
"""VGA, 3D and other display controllers, processing accelerators: no NVSwitch, audio, USB, network."""
_FUNCTIONS: Final = 8192
_DEVICES: Final = 512
_ROOT: Final = "/sys/bus/pci/devices"


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI function. `kind` is class and subclass, e.g. 0x0302."""

    bdf: str
    vendor: int
    device: int
    kind: int
    driver: str | None
    numa_node: int | None

    @property
    def path(self) -> str:
        """Its folder in /sys."""
        return f"{_ROOT}/{self.bdf}"

    @property
    def place(self) -> tuple[int, ...]:
        """Sort key: domain, bus, device, function."""
        return tuple(int(part, 16) for part in self.bdf.replace(".", ":").split(":"))


def scan(host: Host) -> tuple[PciDevice, ...]:
    """All display controllers and processing accelerators, in bus order."""
    return _scan(cast("Hashable", host))


@lru_cache(maxsize=1)
def _scan(host: Hashable) -> tuple[PciDevice, ...]:
    """Read once for all lanes; a host object is one look at a machine."""
    machine = cast("Host", host)
    found = [device for name in machine.names(_ROOT)[:_FUNCTIONS] if (device := _device(machine, name)) is not None]
    return tuple(sorted(found, key=lambda device: device.place)[:_DEVICES])


def of_vendor(host: Host, vendor: int) -> tuple[PciDevice, ...]:
    """Those of one vendor."""
    return tuple(device for device in scan(host) if device.vendor == vendor)


def _device(host: Host, name: str) -> PciDevice | None:
    address, folder = bdf(name), f"{_ROOT}/{name}"
    kind = hexadecimal(host.read(f"{folder}/class").text)
    if address is None or kind is None or kind >> 8 not in _CLASSES:
        return None
    vendor, device = hexadecimal(host.read(f"{folder}/vendor").text), hexadecimal(host.read(f"{folder}/device").text)
    if vendor is None or device is None:
        return None
    driver = host.link(f"{folder}/driver")
    numa = (host.read(f"{folder}/numa_node").text or "").strip()
    return PciDevice(
        bdf=address,
        vendor=vendor,
        device=device,
        kind=kind >> 8,
        driver=known(posixpath.basename(driver.rstrip("/")), 40) if driver else None,
        numa_node=int(numa) if numa.isdigit() and len(numa) < 5 else None,
    )


def drm_nodes(host: Host, device: PciDevice) -> tuple[str | None, str | None]:
    """(render node, card node) of a function, as /sys/…/drm names them."""
    names = host.names(f"{device.path}/drm")
    return _first(names, "renderD"), _first(names, "card")


def _first(names: Sequence[str], prefix: str) -> str | None:
    return next((f"/dev/dri/{name}" for name in names if name.startswith(prefix) and name[len(prefix) :].isdigit()), None)
