"""The processor: what this process may use of it, by its cgroup and affinity, not what the machine has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fl.grants import EngineFacts, Grants
from fl.hardware import Accelerator, Cpu, Detection, Hardware
from fl.host import Host
from fl.lanes.values import known, whole
from fl.lanes.visible import Restriction

TITLE = "CPU"
DRIVER = None
EXCLUSIVE = False
PARTITIONS_TOGETHER = True
_FEATURES: Final = re.compile(
    r"avx|avx2|avx_vnni|avx512\w*|amx_\w+|f16c|fma|sse4_2|asimd|asimddp|asimdhp|bf16|i8mm|sve\w*|sme(?!p)\w*|fphp"
)
_IMPLEMENTERS: Final = {
    "0x41": "Arm",
    "0x48": "HiSilicon",
    "0x51": "Qualcomm",
    "0x61": "Apple",
    "0x6d": "Microsoft",
    "0x70": "Phytium",
    "0xc0": "Ampere",
    "0x4e": "NVIDIA",
}
_CGROUP: Final = "/sys/fs/cgroup"
_NO_LIMIT: Final = 1 << 60
"""cgroup v1 writes a number close to 2^63 for "no limit"."""


def detect(host: Host) -> Detection:
    """No accelerators: the processor is in `Hardware.cpu`."""
    del host
    return Detection()


def grants(chosen: Sequence[Accelerator], hardware: Hardware, engine: EngineFacts) -> Grants:
    """A container needs nothing for the processor."""
    del chosen, hardware, engine
    return Grants()


def restriction(devices: Sequence[Accelerator], environment: Mapping[str, str]) -> Restriction | None:
    """There is nothing to restrict."""
    del devices, environment
    return None


def visibility(chosen: Sequence[Accelerator], hardware: Hardware) -> Mapping[str, str]:
    """Nothing to bind."""
    del chosen, hardware
    return {}


def processor(host: Host) -> Cpu:
    """Model, cores, memory in MiB and the instruction sets that matter for training."""
    text = host.read("/proc/cpuinfo").text or ""
    return Cpu(model=_model(text), cores=_cores(host, text), memory_mib=_memory(host), features=_features(text))


def _field(text: str, *names: str) -> str | None:
    match = re.search(rf"^(?:{'|'.join(map(re.escape, names))})[ \t]*:[ \t]*(.*)$", text, re.M)
    return known(match[1]) if match else None


def _model(text: str) -> str | None:
    name = _field(text, "model name", "Model", "cpu model")
    implementer = _field(text, "CPU implementer")
    return name or (
        f"{_IMPLEMENTERS.get(implementer, implementer)} processor (part {_field(text, 'CPU part') or 'unknown'})" if implementer else None
    )


def _features(text: str) -> tuple[str, ...]:
    words = (_field_all(text, "flags") or _field_all(text, "Features")).split()
    return tuple(sorted({word for word in words if _FEATURES.fullmatch(word)}))


def _field_all(text: str, name: str) -> str:
    match = re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", text, re.M)
    return match[1][:20000] if match else ""


def _cores(host: Host, cpuinfo: str) -> int:
    """The least of: processors, this process's affinity, the cgroup's quota (rounded up)."""
    limits = [len(re.findall(r"^processor[ \t]*:", cpuinfo, re.M))]
    allowed = _field_all(host.read("/proc/self/status").text or "", "Cpus_allowed_list")
    limits.append(_count(allowed))
    limits += [-(-quota // period) for quota, period in _quotas(host) if quota > 0 and period > 0]
    return min((limit for limit in limits if limit > 0), default=1)


def _count(text: str) -> int:
    total = 0
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        first, last = whole(low, 5), whole(high or low, 5)
        total += last - first + 1 if first is not None and last is not None and last >= first else 0
    return total


def _quotas(host: Host) -> Iterator[tuple[int, int]]:
    """(quota, period) in microseconds of every cgroup above this process."""
    for folder in _folders(host, ""):
        quota, _, period = (host.read(f"{folder}/cpu.max").text or "").strip().partition(" ")
        yield whole(quota) or 0, whole(period) or 0
    for folder in _folders(host, "cpu"):
        yield whole(host.read(f"{folder}/cpu.cfs_quota_us").text) or 0, whole(host.read(f"{folder}/cpu.cfs_period_us").text) or 0


def _memory(host: Host) -> int | None:
    """MiB: the machine's memory, or less where a cgroup says so."""
    total = re.search(r"^MemTotal:\s+(\d{1,15}) kB", host.read("/proc/meminfo").text or "", re.M)
    limits = [int(total[1]) << 10] if total else []
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        limits += [whole(host.read(f"{folder}/{name}").text) or 0 for folder in _folders(host, controller)]
    return min((limit for limit in limits if 0 < limit < _NO_LIMIT), default=0) >> 20 or None


def _folders(host: Host, controller: str) -> list[str]:
    """This process's cgroup and those above it, as seen from here; in a container only the root may exist."""
    path, mounted = "", controller
    for line in (host.read("/proc/self/cgroup").text or "").splitlines()[:64]:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controller in controllers.split(",") if controller else controllers == "":
            path, mounted = place.strip().rstrip("/"), controllers
    if controller and host.exists(f"{_CGROUP}/{mounted}"):
        controller = mounted  # v1 mounts some together, as cpu,cpuacct; a link with the short name is usual, not certain
    root = f"{_CGROUP}/{controller}" if controller else _CGROUP if host.exists(f"{_CGROUP}/cgroup.controllers") else f"{_CGROUP}/unified"
    folders = [root]
    for part in [part for part in path.split("/") if part not in ("", ".", "..")][:32]:
        folders.append(f"{folders[-1]}/{part}")
    return folders
