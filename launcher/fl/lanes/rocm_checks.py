"""What `fl doctor` looks at on a machine with AMD GPUs, beyond detection: RAS counters and NUMA balancing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from fl.findings import Finding
from fl.hardware import Evidence, Hardware
from fl.host import Host

COMPANIONS: Final = ("/dev/kfd",)
"""Nodes that every ROCm process opens, beside its GPUs'."""
_BALANCING: Final = "/proc/sys/kernel/numa_balancing"
_COUNTS: Final = re.compile(r"^ue: (\d{1,12})$", re.M)


def checks(host: Host, hardware: Hardware, inside: str | None) -> tuple[Finding, ...]:
    """Reads sysfs and procfs only."""
    counts: dict[str, int] = {}
    for address in dict.fromkeys(a.pci for a in hardware.of_lane("rocm") if a.pci):
        match = _COUNTS.search(host.read(f"/sys/bus/pci/devices/{address}/ras/umc_err_count").text or "")
        if match:
            counts[address] = int(match[1])
    value = (host.read(_BALANCING).text or "").strip()
    return (*ecc(counts), *numa(value, sum(1 for name in host.names("/sys/devices/system/node") if re.fullmatch(r"node\d+", name))))


def ecc(counts: dict[str, int]) -> Iterator[Finding]:
    """PCI address → uncorrectable errors of its memory. Pure."""
    source = "/sys/bus/pci/devices/…/ras/umc_err_count"
    if not counts:
        yield Finding(check="ecc", status="skipped", finding="these GPUs show no counters of memory errors (RAS)")
        return
    bad = {address: count for address, count in counts.items() if count}
    for address, count in bad.items():
        yield Finding(
            check="ecc",
            status="warning",
            finding=f"GPU {address}: {count} uncorrected memory errors since its driver was loaded",
            evidence=(Evidence(source.replace("…", address), f"ue: {count}"),),
            remedy="amd-smi bad-pages\nsudo amd-smi reset --gpureset -g all",
        )
    if not bad:
        yield Finding(
            check="ecc", status="ok", finding=f"no uncorrected memory error on {len(counts)} GPUs", evidence=(Evidence(source, "ue: 0"),)
        )


def numa(value: str, nodes: int) -> Iterator[Finding]:
    """AMD's tuning guides for MI200 and MI300 ask for it off. Pure."""
    if value == "1" and nodes > 1:
        yield Finding(
            check="numa",
            status="warning",
            evidence=(Evidence(_BALANCING, value),),
            finding=f"automatic NUMA balancing is on with {nodes} NUMA nodes: it moves pages that a GPU uses, and AMD advises against it",
            remedy="sudo sysctl kernel.numa_balancing=0\npersistent: echo kernel.numa_balancing=0 | sudo tee /etc/sysctl.d/90-numa.conf",
        )
