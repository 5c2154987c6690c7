"""The rocm, ascend, xpu and cpu lanes: parsers and conclusions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosts import kfd_partitions, make, pci, recorded, seen
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.lanes.kfd import arch_of_target, properties
from fl.lanes.npu_smi import parse, parse_mapping
from fl.lanes.rocm_smi import parse_amd_smi, parse_rocm_smi_json, parse_rocm_smi_text
from fl.lanes.values import bdf, known, mebibytes, numbers, version, whole
from fl.lanes.xpu import parse_discovery

KFD = {"/dev/kfd": {"mode": "0660", "gid": 109}, "/dev/dri/renderD128": {"mode": "0660", "gid": 109}}


def codes(folder: Path) -> set[str]:
    return {problem.code for problem in seen(folder).problems}


def test_mi300x_spx() -> None:
    hardware = recorded("mi300x8-spx")
    assert [(a.arch, a.memory_mib, a.partition, a.usable, a.busy) for a in hardware.accelerators] == [
        ("gfx942", 196592, None, True, n == 3) for n in range(8)
    ]
    assert [a.nodes for a in hardware.accelerators] == [(f"/dev/dri/renderD{128 + 8 * n}",) for n in range(8)]
    assert hardware.accelerators[0].name == "AMD Instinct MI300X OAM" and hardware.problems == ()
    assert hardware.nodes["/dev/kfd"].gid == 109 and hardware.drivers["amdgpu"]["version"] == "6.12.12"


def test_partitions_are_in_numeric_node_order() -> None:
    hardware = recorded("mi300x-cpx")
    assert [a.pci for a in hardware.accelerators] == [f"0000:05:00.{n}" for n in range(8)]
    assert {(a.partition.kind, a.partition.profile, a.partition.parent) for a in hardware.accelerators if a.partition} == {
        ("cpx", "cpx_nps4", 0)
    }
    assert hardware.problems == ()


def test_unequal_partitions(tmp_path: Path) -> None:
    files, nodes = kfd_partitions(2, 2)
    last = "/sys/devices/virtual/kfd/kfd/topology/nodes/4/properties"
    files[last] = files[last].replace("num_xcc 1", "num_xcc 4")
    assert codes(make(tmp_path / "r", files, nodes)) == {"partition-mixed"}


def test_no_permission() -> None:
    hardware = recorded("mi210x2-no-permission")
    assert [a.usable for a in hardware.accelerators] == [False, False]
    assert [(p.code, p.severity) for p in hardware.problems] == [("no-permission", "error")] and "gid 109" in hardware.problems[0].remedy


def test_amd_accelerator_without_a_driver(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", pci("0000:05:00.0", 0x1002, 0x74A1, 0x120000))
    assert codes(folder) == {"no-driver"} and seen(folder).accelerators[0].usable is False


def test_amd_graphics_inside_a_processor_are_no_lane(tmp_path: Path) -> None:
    base = "/sys/devices/virtual/kfd/kfd/topology/nodes"
    files = {
        **pci("0000:0b:00.0", 0x1002, 0x164E, 0x030000, "amdgpu"),
        f"{base}/0/properties": "cpu_cores_count 16\nsimd_count 0\n",
        f"{base}/1/properties": "cpu_cores_count 0\nsimd_count 4\nsimd_per_cu 2\ngfx_target_version 100306\nlocation_id 2816\ndrm_render_minor 128\n",  # noqa: E501
    }
    assert seen(make(tmp_path / "r", files, KFD)).accelerators == ()


@pytest.mark.parametrize(
    ("target", "arch"),
    [
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (90500, "gfx950"),
        (90008, "gfx908"),
        (100300, "gfx1030"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
        (0, None),
    ],
)
def test_target_versions(target: int, arch: str | None) -> None:
    assert arch_of_target(target) == arch


def test_amd_smi_in_its_shapes() -> None:
    entry = '{"gpu": 0, "ASIC": {"MARKET_NAME": "N/A", "TARGET_GRAPHICS_VERSION": "gfx90a"}, "bus": {"bdf": "0000:05:00.0"}, "vram": {"vram_size": "65520 MB"}}'  # noqa: E501
    for text in (f"[{entry}]", f'{{"gpu_data": [{entry}]}}'):
        (gpu,) = parse_amd_smi(text)
        assert (gpu.name, gpu.arch, gpu.pci, gpu.memory_mib) == (None, "gfx90a", "0000:05:00.0", 65520)


def test_rocm_smi_json_and_text() -> None:
    text = 'WARNING: x\n{"card1": {"Card Series": "N/A", "Device Name": "AMD X", "PCI Bus": "0000:C1:00.0"}, "card0": {"GPU ID": "0x738c"}, "system": {"Driver version": "6.8.5"}}'  # noqa: E501
    cards = parse_rocm_smi_json(text)
    assert [(c.index, c.name, c.device, c.driver) for c in cards] == [(0, None, 0x738C, "6.8.5"), (1, "AMD X", None, "6.8.5")]
    (card,) = parse_rocm_smi_text(
        "=== x ===\nWARNING: low power\nGPU[0]\t\t: Card series: \t\tAMD X\nGPU[0] : VRAM Total Memory (B): 8573157376\n"
    )
    assert (card.name, card.memory_mib) == ("AMD X", 8176)


def test_ascend_a2_with_one_card_in_use() -> None:
    hardware = recorded("ascend-a2x8-one-busy")
    assert [(a.arch, a.name, a.memory_mib, a.usable, a.busy) for a in hardware.accelerators] == [
        ("ascend910b", "910B3", 65536, True, n == 3) for n in range(8)
    ]
    assert hardware.drivers["ascend"] == {"version": "25.2.0", "firmware": "7.7.0.6.236"} and hardware.problems == ()
    assert {"/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc", "/dev/davinci7"} <= set(hardware.nodes)
    assert {"/usr/local/dcmi", "/usr/local/Ascend/driver/lib64", "/etc/hccn.conf"} <= set(hardware.host_paths)


def ascend(tmp_path: Path, table: str, device: int, code: int = 0, **files: str) -> Path:
    nodes = {path: {"mode": "0660", "gid": 1000} for path in ("/dev/davinci0", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")}
    paths = {"/" + name.replace("__", "/"): text for name, text in files.items()}
    return make(
        tmp_path / "r", {**pci("0000:c1:00.0", 0x19E5, device, 0x120000, "devdrv"), **paths}, nodes, [(["npu-smi", "info"], code, table)]
    )


TABLE = """\
| npu-smi 23.0.0                   Version: 23.0.0                                               |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B                | OK            | 73.1        37                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           920/ 13553        1234/ 32768          |
"""


def test_910b_without_a_digit_is_the_first_generation(tmp_path: Path) -> None:
    (npu,) = seen(ascend(tmp_path, TABLE, 0xD801)).accelerators
    assert (npu.arch, npu.memory_mib, npu.healthy) == ("ascend910", 32768, True)


@pytest.mark.parametrize(("health", "usable"), [("Warning", None), ("Alarm", False), ("OK", True)])
def test_health(tmp_path: Path, health: str, usable: bool | None) -> None:
    folder = ascend(tmp_path, TABLE.replace("| OK            |", f"| {health:<13} |"), 0xD802)
    assert seen(folder).accelerators[0].usable is usable
    assert codes(folder) == (set() if health == "OK" else {"device-unhealthy"})


def test_a_card_of_another_container(tmp_path: Path) -> None:
    folder = ascend(tmp_path, "dcmi model initialized failed, because the device is used. ret is -8020\n", 0xD802, code=1)
    assert codes(folder) == {"device-busy"} and seen(folder).accelerators[0].busy is True


def test_firmware_outside_the_drivers_range(tmp_path: Path) -> None:
    info = {
        "usr__local__Ascend__driver__version.info": "package_version=24.1.rc3\ncompatible_version_fw=[7.0.0,7.5.99]\n",
        "usr__local__Ascend__firmware__version.info": "Version=7.10.0.1\n",
    }
    folder = ascend(tmp_path, TABLE, 0xD802, **info)
    assert codes(folder) == {"firmware-mismatch"} and seen(folder).accelerators[0].usable is None


def test_a_container_with_one_of_eight_cards(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for n in range(8):
        files |= pci(f"0000:{0xC0 + n:02x}:00.0", 0x19E5, 0xD802, 0x120000, "devdrv")
    nodes = {"/dev/davinci5": {}, "/dev/davinci_manager": {}, "/dev/devmm_svm": {}, "/dev/hisi_hdc": {}}
    hardware = seen(make(tmp_path / "r", files, nodes))
    assert [a.index for a in hardware.accelerators if a.usable] == [5] and len(hardware.accelerators) == 8
    assert [(p.code, p.severity) for p in hardware.problems] == [("nodes-missing", "warning")]


def test_two_dies_and_masked_rows() -> None:
    table = parse(
        "| Chip  Phy-ID              | Bus-Id        | x |\n| 1     Ascend910           | OK            | -  36  0    / 0 |\n"
        "| 1     3                   | 0000:9B:00.0  | 0  0 / 0  3185 / 65536 |\n| broken |\n"
    )
    assert [(n.npu, n.chip, n.index, n.memory_mib) for n in table.npus] == [(1, 1, 3, 65536)] and table.phy_ids


def test_the_mapping_names_chips() -> None:
    table = parse_mapping("NPU ID  Chip ID  Chip Logic ID  Chip Name\n5  0  0  Ascend 910B3\n5  1  -  Mcu\n")
    assert [(n.npu, n.index, n.name) for n in table.npus] == [(5, 5, "Ascend 910B3")]


def test_intel_nodes_follow_the_bus_not_their_numbers() -> None:
    hardware = recorded("intel-max1100x2")
    assert [(a.arch, a.nodes, a.usable) for a in hardware.accelerators] == [
        ("xe-hpc", ("/dev/dri/renderD129", "/dev/dri/card1"), True),
        ("xe-hpc", ("/dev/dri/renderD128", "/dev/dri/card2"), True),
    ]


def test_an_intel_gpu_nobody_knows(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", pci("0000:03:00.0", 0x8086, 0xFFFF, 0x038000, "xe"), {"/dev/dri/renderD128": {}})
    assert codes(folder) == {"unknown-device"} and seen(folder).accelerators[0].usable is True


def test_the_processor_is_what_the_cgroup_leaves() -> None:
    cpu = recorded("cpu-only").cpu
    assert (cpu.cores, cpu.memory_mib) == (3, 16384)
    assert {"avx512_bf16", "amx_bf16"} <= set(cpu.features) and "fpu" not in cpu.features


def test_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "/proc/cpuinfo": "processor\t: 0\nprocessor\t: 1\nprocessor\t: 2\n",
        "/proc/meminfo": "MemTotal: 8388608 kB\n",
        "/proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    cpu = seen(make(tmp_path / "r", files)).cpu
    assert (cpu.cores, cpu.memory_mib) == (1, 2048)


def test_values() -> None:
    assert [known(text) for text in ("N/A", "[N/A]", "xxx", "", "  a\x1bb ")] == [None, None, None, None, "a\ufffdb"]
    assert (mebibytes("81559 MiB"), mebibytes("[N/A]"), mebibytes("9" * 40)) == (81559, None, None)
    assert (version("610.57.04 [Deprecated]"), version("Deprecated, see"), version("xxx")) == ("610.57.04", None, None)
    assert (bdf("00000000:2D:00.0"), bdf("2D:00.0"), bdf("x")) == ("0000:2d:00.0", "0000:2d:00.0", None)
    assert numbers("7.10.0") > numbers("7.9.99") and whole("9" * 21) is None
    assert properties("simd_count 80\nx y\n\x00bad 1\nhuge " + "9" * 40) == {"simd_count": 80}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["| 0 ", " | OK | ", "| Chip ", "Process id", "\n", "1/ 2", "0000:c1:00.0", "GPU[0] : ", "9" * 5000]),
            st.text(max_size=20),
        ),
        max_size=40,
    ).map("".join)
)
def test_table_parsers_never_raise(text: str) -> None:
    parse(text)
    parse_discovery(text)
    parse_rocm_smi_text(text)
    properties(text)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "/proc/driver/nvidia/version",
                "/sys/module/nvidia/version",
                "/sys/bus/pci/devices/0000:01:00.0/vendor",
                "/sys/devices/virtual/kfd/kfd/topology/nodes/1/properties",
                "/proc/cpuinfo",
                "/proc/self/cgroup",
                "/proc/meminfo",
                "/sys/fs/cgroup/cpu.max",
                "/usr/local/Ascend/driver/version.info",
                "/etc/ascend_install.info",
            ]
        ),
        st.binary(max_size=60),
    )
)
def test_detection_never_raises(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    nodes = {"/dev/davinci0": {}, "/dev/kfd": {}, "/dev/nvidia0": {}, "/dev/dri/renderD128": {}}
    hardware = seen(make(tmp_path_factory.mktemp("host") / "r", {**pci("0000:01:00.0", 0x19E5, 0xD802, 0x120000), **files}, nodes))
    assert hardware.to_json()["schema"] == 1
