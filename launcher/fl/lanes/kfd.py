"""AMD's KFD topology in /sys: one folder a node, CPUs, GPUs and GPU partitions alike, in numeric order as HIP counts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from fl.host import Host
from fl.lanes.amd_chips import APUS

_ROOTS: Final = ("/sys/devices/virtual/kfd/kfd", "/sys/class/kfd/kfd")
_SHIFT: Final = 20
_NODES: Final = 1024
_PROCESSES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class KfdNode:
    """A node that is or may be a GPU. `refused`: reading it fails (another container's device); `garbage`: it cannot be parsed."""

    number: int
    state: Literal["gpu", "refused", "garbage"]
    error: str | None = None
    path: str = ""
    arch: str | None = None
    device: int | None = None
    pci: str | None = None
    unique_id: int = 0
    render: int | None = None
    memory_mib: int | None = None
    gpu_id: int | None = None
    apu: bool = False
    """Graphics inside a processor: its memory is the system's."""
    shape: tuple[int, int] = (0, 0)
    """(XCCs, compute units): equal for equal partitions."""

    @property
    def bus(self) -> str | None:
        """PCI address without the function number, which counts partitions."""
        return self.pci.rsplit(".", 1)[0] if self.pci else None


def scan(host: Host) -> tuple[KfdNode, ...]:
    """GPU nodes and unreadable ones, in numeric order."""
    root = next((r for r in _ROOTS if host.names(f"{r}/topology/nodes")), None)
    if root is None:
        return ()
    names = [name for name in host.names(f"{root}/topology/nodes") if name.isascii() and name.isdigit() and len(name) < 6]
    nodes = [_node(host, f"{root}/topology/nodes/{name}", int(name)) for name in sorted(names, key=int)[:_NODES]]
    return tuple(node for node in nodes if node is not None)


def busy(host: Host) -> dict[int, bool] | None:
    """gpu_id → some process holds memory on it; None where the kernel does not say."""
    root = next((f"{r}/proc" for r in _ROOTS if host.exists(f"{r}/proc")), None)
    if root is None:
        return None
    held: dict[int, bool] = {}
    for pid in host.names(root)[:_PROCESSES]:
        for name in host.names(f"{root}/{pid}"):
            if name.startswith("vram_") and name[5:].isdigit() and len(name) < 20:
                used = (host.read(f"{root}/{pid}/{name}").text or "0").strip()
                held[int(name[5:])] = held.get(int(name[5:]), False) or used not in ("0", "")
    return held


def arch_of_target(target: int) -> str | None:
    """major * 10000 + minor * 100 + step, the step printed in hexadecimal: 90010 → gfx90a, 100300 → gfx1030."""
    return f"gfx{target // 10000}{target // 100 % 100}{target % 100:x}" if 0 < target < 1_000_000 else None


def properties(text: str) -> dict[str, int]:
    """`key value` lines with decimals of up to 64 bits; others are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key.isidentifier() and value.isascii() and value.isdigit() and len(value) <= 20:
            found[key] = int(value)
    return found


def _node(host: Host, path: str, number: int) -> KfdNode | None:
    read = host.read(f"{path}/properties")
    if read.text is None or not read.text.strip():
        return KfdNode(number=number, state="refused", error=read.error or "EPERM", path=path)
    values = properties(read.text)
    if "simd_count" not in values:
        return KfdNode(number=number, state="garbage", path=path)
    if values["simd_count"] == 0:
        return None
    gpu_id = (host.read(f"{path}/gpu_id").text or "").strip()
    render = values.get("drm_render_minor", 0)
    simd_per_cu = values.get("simd_per_cu", 0)
    return KfdNode(
        number=number,
        state="gpu",
        path=path,
        arch=arch_of_target(values.get("gfx_target_version", 0)),
        device=values.get("device_id") or None,
        pci=_pci(values),
        unique_id=values.get("unique_id", 0),
        render=render if 128 <= render < 1024 else None,
        memory_mib=_memory(host, path, values),
        apu=values.get("cpu_cores_count", 0) > 0 or values.get("device_id") in APUS,
        gpu_id=int(gpu_id) if gpu_id.isdigit() and len(gpu_id) < 12 else None,
        shape=(values.get("num_xcc", 0), values["simd_count"] // simd_per_cu if simd_per_cu else 0),
    )


def _pci(values: dict[str, int]) -> str | None:
    location = values.get("location_id")
    if location is None:
        return None
    return f"{values.get('domain', 0) & 0xFFFFFFFF:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"


def _memory(host: Host, path: str, values: dict[str, int]) -> int | None:
    """The banks in the frame buffer (heap 1 public, 2 private); local_mem_size is 0 on newer kernels."""
    size = 0
    for name in host.names(f"{path}/mem_banks"):
        bank = properties(host.read(f"{path}/mem_banks/{name}/properties").text or "")
        if bank.get("heap_type") in (1, 2):
            size += bank.get("size_in_bytes", 0)
    size = size or values.get("local_mem_size", 0)
    return size >> _SHIFT or None
