"""Formats and their drifts on Ascend, Intel and the processor; one small made-up machine for each."""

# ruff: noqa: E501 - tables of vendors' texts are not broken

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hosts import make, pci, seen

from fl.hardware import Accelerator, Hardware
from fl.lanes.npu_smi import parse
from fl.lanes.xpu import parse_discovery

Nodes = dict[str, dict[str, Any]]
MANAGERS: Nodes = {path: {"mode": "0660", "gid": 1000} for path in ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")}


def codes(hardware: Hardware) -> list[tuple[str, str]]:
    return [(problem.code, problem.severity) for problem in hardware.problems]


# --- Ascend -------------------------------------------------------------------------------------------------------------------------

HEAD = "| npu-smi {v}                   Version: {v}                                               |\n"
A2 = """| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
"""
A3 = A2.replace("| Chip                      |", "| Chip  Phy-ID              |")
SOC = """| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
"""


def row(npu: int, name: str, health: str, chip: str, bus: str, memory: str) -> str:
    return f"| {npu:<5} {name:<19} | {health:<13} | 93.6        42                0    / 0             |\n| {chip:<25} | {bus:<13} | 0           {memory} |\n"


def ascend(folder: Path, table: str, devices: dict[str, int], cards: list[str], head: str = "25.5.0") -> tuple[Accelerator, ...]:
    files: dict[str, str] = {}
    for address, device in devices.items():
        files |= pci(address, 0x19E5, device, 0x120000, "devdrv")
    nodes = {**MANAGERS, **{f"/dev/{card}": {"mode": "0660", "gid": 1000} for card in cards}}
    return seen(make(folder, files, nodes, [(["npu-smi", "info"], 0, HEAD.format(v=head) + table)])).accelerators


@pytest.mark.parametrize(
    ("name", "device", "arch"),
    [
        ("910B", 0xD801, "ascend910"),
        ("910A", 0xD801, "ascend910"),
        ("910ProB", None, "ascend910"),
        ("910B", None, "ascend910"),
        ("910B1", None, "ascend910b"),
        ("910B4-1", None, "ascend910b"),
        ("910B2C", None, "ascend910b"),
        ("910B3", 0xD802, "ascend910b"),
        ("910C", None, "ascend910_93"),
        ("Ascend910_9391", None, "ascend910_93"),
        ("310P3", None, "ascend310p"),
        ("310B4", None, "ascend310b"),
        ("Ascend950PR", None, "ascend950"),
        ("xxx", 0xD802, "ascend910b"),
        ("xxx", None, None),
    ],
)
def test_a_name_means_its_generation_and_an_id_more(tmp_path: Path, name: str, device: int | None, arch: str | None) -> None:
    devices = {} if device is None else {"0000:c1:00.0": device}
    (card,) = ascend(tmp_path / "r", A2 + row(0, name, "OK", "0", "0000:C1:00.0", "0    / 0          3182 / 65536"), devices, ["davinci0"])
    assert card.arch == arch


@pytest.mark.parametrize(
    ("word", "healthy", "usable"),
    [
        ("OK", True, True),
        ("Warning", False, None),
        ("Alarm", False, False),
        ("Critical", False, False),
        ("UNKNOWN", False, None),
        ("", None, True),
    ],
)
def test_words_of_health(tmp_path: Path, word: str, healthy: bool | None, usable: bool | None) -> None:
    (card,) = ascend(
        tmp_path / "r",
        A2 + row(0, "910B3", word, "0", "0000:C1:00.0", "0    / 0          3182 / 65536"),
        {"0000:c1:00.0": 0xD802},
        ["davinci0"],
    )
    assert (card.healthy, card.usable) == (healthy, usable)


def test_two_dies_are_numbered_by_phy_id(tmp_path: Path) -> None:
    table, devices = A3, {}
    for npu in range(2):
        for chip in range(2):
            bus = f"0000:{0x90 + 2 * npu + chip:02X}:00.0"
            devices[bus.lower()] = 0xD803
            table += row(npu, "Ascend910", "OK", f"{chip}     {2 * npu + chip}", bus, "0    / 0          3185/ 65536").replace(
                "93.6", "-   " if chip else "93.6"
            )
    process = "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |\n| 1       0                 | 4711          | python                   | 60000                   |\n"
    cards = ascend(tmp_path / "r", table + process, devices, [f"davinci{n}" for n in range(4)])
    assert [(a.index, a.arch, a.memory_mib, a.nodes) for a in cards] == [
        (n, "ascend910_93", 65536, (f"/dev/davinci{n}",)) for n in range(4)
    ]
    assert [a.busy for a in cards][2] is True and cards[3].busy is False


def test_equal_phy_ids_are_one_device(tmp_path: Path) -> None:
    table = A3 + "".join(row(0, "Ascend910", "OK", f"{chip}     0", "0000:9B:00.0", "0    / 0          3185/ 65536") for chip in range(2))
    assert len(ascend(tmp_path / "r", table, {"0000:9b:00.0": 0xD803}, ["davinci0"])) == 1


def test_a_duo_card_with_a_large_npu_number(tmp_path: Path) -> None:
    table = SOC + "".join(row(32768, "310P3", "OK", f"{chip}       {chip}", f"0000:8{chip + 1}:00.0", "1693 / 44216") for chip in range(2))
    cards = ascend(tmp_path / "r", table, {"0000:81:00.0": 0xD500, "0000:82:00.0": 0xD500}, ["davinci0", "davinci1"])
    assert [(a.index, a.arch, a.memory_mib, a.usable) for a in cards] == [(n, "ascend310p", 44216, True) for n in range(2)]


@pytest.mark.parametrize("bus", ["NA", "N/A"])
def test_a_bus_id_that_is_not_available(tmp_path: Path, bus: str) -> None:
    (card,) = ascend(tmp_path / "r", SOC + row(0, "310B4", "OK", "0       0", bus, "2304 / 11577"), {}, ["davinci0"])
    assert (card.arch, card.memory_mib, card.pci) == ("ascend310b", 11577, None)


@pytest.mark.parametrize("text", ["35738/ 65536", "35738 /65536", "35738/65536", "35738 / 65536"])
def test_numbers_that_touch_their_slash(text: str) -> None:
    (npu,) = parse(A2 + row(5, "910B3", "OK", "0", "0000:C1:00.0", f"0/ 0          {text}")).npus
    assert (npu.index, npu.memory_mib) == (5, 65536)


@pytest.mark.parametrize(("node", "index"), [("vdavinci100", 100), ("davinci100", 100)])
def test_a_virtual_card(tmp_path: Path, node: str, index: int) -> None:
    (card,) = ascend(tmp_path / "r", "", {"0000:c1:00.0": 0xD802}, [node])
    assert card.index == index and card.partition is not None and card.partition.kind == "vnpu"


def test_one_card_of_a_container_keeps_its_number(tmp_path: Path) -> None:
    cards = ascend(
        tmp_path / "r", A2 + row(5, "910B4", "OK", "0", "0000:C1:00.0", "0 / 0  3000/ 32768"), {"0000:c1:00.0": 0xD802}, ["davinci5"]
    )
    assert [(a.index, a.nodes, a.usable) for a in cards] == [(5, ("/dev/davinci5",), True)]


def test_a_driver_elsewhere(tmp_path: Path) -> None:
    files = {
        **pci("0000:c1:00.0", 0x19E5, 0xD802, 0x120000, "devdrv"),
        "/etc/ascend_install.info": "UserGroup=HwHiAiUser\nDriver_Install_Path_Param=/opt/hdk\n",
        "/opt/hdk/driver/version.info": "package_version=25.5.1\ncompatible_version_fw=[7.0.0,7.9.99]\n",
        "/opt/hdk/firmware/version.info": "Version=7.8.0.3.220\n",
    }
    hardware = seen(make(tmp_path / "r", files, {**MANAGERS, "/dev/davinci0": {}}))
    assert hardware.drivers["ascend"] == {"version": "25.5.1", "firmware": "7.8.0.3.220"} and codes(hardware) == []
    assert "/opt/hdk/driver/version.info" in hardware.host_paths


@pytest.mark.parametrize("call", [["npu-smi", "info"], ["npu-smi", "info", "-m"]])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("dcmi module initialize failed. ret is -8005", "tool-failed"),
        ("the device is used. ret is -8020", "device-busy"),
        ("libc_sec.so: cannot open shared object file", "tool-failed"),
    ],
)
def test_what_npu_smi_says_when_it_fails(tmp_path: Path, text: str, code: str, call: list[str]) -> None:
    files = pci("0000:c1:00.0", 0x19E5, 0xD802, 0x120000, "devdrv")
    hardware = seen(make(tmp_path / "r", files, {**MANAGERS, "/dev/davinci0": {}}, [(call, 1, text + "\n")]))
    assert [c for c, _ in codes(hardware)] == [code] and hardware.accelerators[0].usable is not True


def test_a_bmc_and_a_network_card_of_the_same_vendor_are_no_accelerators(tmp_path: Path) -> None:
    files = {**pci("0000:03:00.0", 0x19E5, 0x1711, 0x030000), **pci("0000:04:00.0", 0x19E5, 0x0222, 0x020000)}
    assert seen(make(tmp_path / "r", files)).accelerators == ()


# --- Intel --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "device", "kind", "arch"),
    [
        ("0000:00:02.0", 0x7D55, 0x030000, None),
        ("0000:00:02.0", 0xA7A0, 0x038000, None),
        ("0000:00:0b.0", 0x7D1D, 0x120000, None),
        ("0000:03:00.0", 0x56A0, 0x030000, "xe-hpg"),
        ("0000:03:00.0", 0xE20B, 0x030000, "xe2-hpg"),
        ("0000:00:02.0", 0x56C0, 0x038000, "xe-hpg"),
        ("0000:29:00.0", 0x0BD5, 0x038000, "xe-hpc"),
        ("0000:29:00.0", 0x0BDA, 0x038000, "xe-hpc"),
    ],
)
def test_discrete_or_integrated(tmp_path: Path, address: str, device: int, kind: int, arch: str | None) -> None:
    hardware = seen(make(tmp_path / "r", pci(address, 0x8086, device, kind, "xe"), {"/dev/dri/renderD128": {}}))
    assert [(a.arch, a.usable) for a in hardware.accelerators] == ([] if arch is None else [(arch, True)])
    assert codes(hardware) == []


@pytest.mark.parametrize(("device", "count"), [(0x1020, 8), (0x1060, 1)])
def test_gaudi_is_named_and_no_lane(tmp_path: Path, device: int, count: int) -> None:
    files: dict[str, str] = {}
    for n in range(count):
        files |= pci(f"0000:{0x20 + n:02x}:00.0", 0x1DA3, device, 0x120000, "habanalabs")
    hardware = seen(make(tmp_path / "r", files, {"/dev/accel/accel0": {}}))
    assert hardware.accelerators == () and codes(hardware) == [("unknown-device", "error")]
    assert f"{count} x Intel Gaudi" in hardware.problems[0].message and hardware.problems[0].lane is None


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({"tile0/physical_vram_size_bytes": "25669140480\n"}, 24480),
        ({"tile0/physical_vram_size_bytes": "68719476736\n", "tile1/physical_vram_size_bytes": "68719476736\n"}, 131072),
        ({"drm/card1/lmem_total_bytes": "17179869184\n"}, 16384),
        ({"tile0/physical_vram_size_bytes": "0x5\n"}, None),
        ({"tile0/physical_vram_size_bytes": "9" * 40}, None),
        ({}, None),
    ],
)
def test_memory_of_an_intel_gpu_by_its_kernel_driver(tmp_path: Path, files: dict[str, str], mib: int | None) -> None:
    place = "/sys/bus/pci/devices/0000:03:00.0"
    drm = {f"{place}/drm/card1/dev": "226:1\n", f"{place}/drm/renderD128/dev": "226:128\n"}
    given = {f"{place}/{name}": text for name, text in files.items()}
    record = make(tmp_path / "r", {**pci("0000:03:00.0", 0x8086, 0xE20B, 0x030000, "xe"), **drm, **given}, {"/dev/dri/renderD128": {}})
    (gpu,) = seen(record).accelerators
    assert (gpu.memory_mib, gpu.nodes[0], gpu.usable) == (mib, "/dev/dri/renderD128", True)


DISCOVERY = """
+-----------+--------------------------------------------------------------------------------------+
| Device ID | Device Information                                                                   |
+-----------+--------------------------------------------------------------------------------------+
| 0         | Device Name: Intel(R) Data Center GPU Max 1550                                       |
|           | Vendor Name: Intel(R) Corporation                                                    |
|           | SOC UUID: 00000000-0000-0029-0000-002f0bd58086                                       |
|           | PCI BDF Address: 0000:29:00.0                                                        |
|           | DRM Device: /dev/dri/card1                                                           |
+-----------+--------------------------------------------------------------------------------------+
| 1         | Device Name: N/A                                                                     |
|           | PCI BDF Address: 0000:9A:00.0                                                        |
+-----------+--------------------------------------------------------------------------------------+
"""


def test_xpu_smi() -> None:
    found = parse_discovery(DISCOVERY)
    assert {address: fields.get("Device Name") for address, fields in found.items()} == {
        "0000:29:00.0": "Intel(R) Data Center GPU Max 1550",
        "0000:9a:00.0": None,
    }


# --- Processor ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpuinfo", "model", "present", "absent"),
    [
        (
            "model name\t: Intel(R) Xeon(R) Platinum 8480+\nflags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 amx_tile amx_bf16 amx_int8\n",
            "Intel(R) Xeon(R) Platinum 8480+",
            {"avx512_bf16", "amx_bf16", "avx2"},
            {"fpu"},
        ),
        (
            "model name\t: AMD EPYC 7763\nflags\t\t: fpu sse4_2 avx avx2 fma f16c\n",
            "AMD EPYC 7763",
            {"avx2", "fma"},
            {"avx512f", "amx_bf16"},
        ),
        (
            "CPU implementer\t: 0x48\nCPU part\t: 0xd02\nFeatures\t: fp asimd sve i8mm bf16 svei8mm\n",
            "HiSilicon processor (part 0xd02)",
            {"sve", "bf16", "i8mm"},
            {"avx2", "fp"},
        ),
        (
            "CPU implementer\t: 0x41\nCPU part\t: 0xd4f\nFeatures\t: asimd sve2 svebf16 sme smp\n",
            "Arm processor (part 0xd4f)",
            {"sve2", "sme"},
            {"smp"},
        ),
        ("\xff\xfe nonsense", None, set(), {"avx2"}),
    ],
)
def test_instruction_sets_that_decide(tmp_path: Path, cpuinfo: str, model: str | None, present: set[str], absent: set[str]) -> None:
    cpu = seen(make(tmp_path / "r", {"/proc/cpuinfo": "processor\t: 0\n" + cpuinfo})).cpu
    assert cpu.model == model and present <= set(cpu.features) and not absent & set(cpu.features)


PROCESSORS = "".join(f"processor\t: {n}\n" for n in range(16))
MEMORY = {"/proc/meminfo": f"MemTotal: {64 << 20} kB\n"}


@pytest.mark.parametrize(
    ("files", "cores", "gib"),
    [
        ({}, 16, 64),
        (
            {
                "/sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
                "/proc/self/cgroup": "0::/\n",
                "/sys/fs/cgroup/cpu.max": "350000 100000\n",
                "/sys/fs/cgroup/memory.max": f"{8 << 30}\n",
            },
            4,
            8,
        ),
        (
            {
                "/sys/fs/cgroup/cgroup.controllers": "",
                "/proc/self/cgroup": "0::/\n",
                "/sys/fs/cgroup/cpu.max": "max 100000\n",
                "/sys/fs/cgroup/memory.max": "max\n",
            },
            16,
            64,
        ),
        (
            {
                "/sys/fs/cgroup/cgroup.controllers": "",
                "/proc/self/cgroup": "0::/job/step\n",
                "/sys/fs/cgroup/job/cpu.max": "200000 100000\n",
                "/sys/fs/cgroup/job/step/memory.max": f"{4 << 30}\n",
            },
            2,
            4,
        ),
        (
            {
                "/proc/self/cgroup": "3:cpu,cpuacct:/slurm/job_7\n2:memory:/slurm/job_7\n",
                "/sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "300000\n",
                "/sys/fs/cgroup/cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000\n",
                "/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": f"{16 << 30}\n",
            },
            3,
            16,
        ),
        (
            {
                "/proc/self/cgroup": "3:cpu,cpuacct:/\n2:memory:/\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            16,
            64,
        ),
        ({"/proc/self/status": "Cpus_allowed_list:\t0-1,8-9\n"}, 4, 64),
    ],
)
def test_cores_and_memory_of_the_cgroup(tmp_path: Path, files: dict[str, str], cores: int, gib: int) -> None:
    cpu = seen(make(tmp_path / "r", {"/proc/cpuinfo": PROCESSORS, **MEMORY, **files})).cpu
    assert (cpu.cores, cpu.memory_mib) == (cores, gib << 10)
