"""The cuda lane: parsers and conclusions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosts import make, pci, recorded, seen
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.lanes.nvidia_chips import arch_of_capability, arch_of_device, arch_of_name
from fl.lanes.nvidia_report import GpuReport, MigReport, Report, merge
from fl.lanes.nvidia_smi import QUERY, parse_apps, parse_csv, parse_list, parse_text, parse_xml
from fl.lanes.nvidia_table import parse_table
from fl.lanes.nvidia_tools import parse_nvml
from fl.lanes.values import product

NODES = {"/dev/nvidiactl": {}, "/dev/nvidia-uvm": {}, "/dev/nvidia0": {}}
H100 = pci("0000:65:00.0", 0x10DE, 0x2330, 0x030200, "nvidia")
LOADED = {
    "/sys/module/nvidia/version": "580.95.05\n",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  x\n",
}


def codes(folder: Path) -> set[str]:
    return {problem.code for problem in seen(folder).problems}


def test_driver_535_is_told_with_its_cuda() -> None:
    hardware = recorded("h100x1-driver535")
    assert hardware.drivers["nvidia"] == {"version": "535.54.03", "max_cuda": "12.2"}
    assert set(hardware.nodes) == {"/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}


def test_numa_nodes_and_nvswitch() -> None:
    hardware = recorded("h100x8-driver580")
    assert [a.numa_node for a in hardware.accelerators] == [0] * 4 + [1] * 4
    assert len(hardware.accelerators) == 8


def test_the_processors_own_graphics_are_no_lane_and_a_desktop_is_no_load() -> None:
    (gpu,) = recorded("laptop-4060-igpu").accelerators
    assert (gpu.lane, gpu.arch, gpu.busy) == ("cuda", "sm_89", False)


def test_wsl_needs_neither_module_nor_nodes_and_finds_its_own_tool() -> None:
    hardware = recorded("wsl2-4090")
    assert [(a.arch, a.usable, a.nodes) for a in hardware.accelerators] == [("sm_89", True, ("/dev/dxg",))]
    assert hardware.problems == () and "/usr/lib/wsl" in hardware.host_paths


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x)", "580.95.05"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.216.03  Thu x", "535.216.03"),
        ("NVRM version: NVIDIA UNIX aarch64 Kernel Module  550.120  Fri x", "550.120"),
        ("NVRM version: NVIDIA UNIX Kernel Module for aarch64  34.1.1  Release Build", None),
        ("", None),
    ],
)
def test_module_line(tmp_path: Path, line: str, version: str | None) -> None:
    files = {**H100, "/proc/driver/nvidia/version": line + "\nGCC version:  gcc version 12.3.0\n"}
    assert seen(make(tmp_path / "r", files, NODES)).drivers["nvidia"]["version"] == version


def test_no_driver(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", pci("0000:65:00.0", 0x10DE, 0x2330, 0x030200, "nouveau"))
    hardware = seen(folder)
    assert [a.usable for a in hardware.accelerators] == [False]
    assert [p.code for p in hardware.problems] == ["no-driver"] and "nouveau" in hardware.problems[0].message


def test_nodes_missing_is_not_no_driver(tmp_path: Path) -> None:
    assert codes(make(tmp_path / "r", {**H100, **LOADED})) == {"nodes-missing"}


def test_a_node_that_does_not_open(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", {**H100, **LOADED}, {**NODES, "/dev/nvidia0": {"openable": False, "error": "EPERM"}})
    assert codes(folder) == {"no-permission"} and seen(folder).accelerators[0].usable is False


def test_a_tool_that_fails_leaves_the_answer_open(tmp_path: Path) -> None:
    folder = make(tmp_path / "r", {**H100, **LOADED}, NODES, [(["nvidia-smi", "-q", "-x"], 255, "Unable to determine the device handle\n")])
    assert codes(folder) == {"tool-failed"} and seen(folder).accelerators[0].usable is None


def test_nvml_is_preferred_and_its_load_is_believed(tmp_path: Path) -> None:
    answer = (
        '{"driver": "580.95.05", "max_cuda": "13.0", "gpus": [{"index": 0, "name": "NVIDIA H100", "uuid": "GPU-1", "pci": "00000000:65:00.0", "device": 9008,'  # noqa: E501
        ' "minor": 0, "capability": "9.0", "memory_mib": 81559, "used_mib": 480, "compute_mode": "Default", "fabric": "In Progress", "mig": false, "migs": [],'  # noqa: E501
        ' "processes": []}]}'
    )
    folder = make(tmp_path / "r", {**H100, **LOADED}, NODES, [(["fl-nvml"], 0, answer)])
    (gpu,) = seen(folder).accelerators
    assert (gpu.memory_mib, gpu.busy, gpu.usable) == (81559, False, False)
    assert codes(folder) == {"fabric-not-ready"}


def test_memory_without_a_process_tells_nothing() -> None:
    gpu = {"index": 0, "processes": [], "used_mib": 40000}
    assert parse_nvml({"driver": None, "max_cuda": None, "gpus": [gpu]}).gpus[0].busy is None


@pytest.mark.parametrize(("mode", "usable"), [("Prohibited", False), ("Exclusive_Process", True), ("Default", True)])
def test_compute_modes(tmp_path: Path, mode: str, usable: bool) -> None:
    xml = f'<nvidia_smi_log><gpu id="0:65:00.0"><compute_mode>{mode}</compute_mode><processes/></gpu></nvidia_smi_log>'
    folder = make(tmp_path / "r", {**H100, **LOADED}, NODES, [(["nvidia-smi", "-q", "-x"], 0, xml)])
    assert seen(folder).accelerators[0].usable is usable
    assert codes(folder) == (set() if mode == "Default" else {"exclusive-mode"})


def test_a_gpu_that_needs_a_reset(tmp_path: Path) -> None:
    xml = (
        '<nvidia_smi_log><gpu id="0:65:00.0"><fb_memory_usage><total>[GPU requires reset]</total></fb_memory_usage></gpu></nvidia_smi_log>'
    )
    folder = make(tmp_path / "r", {**H100, **LOADED}, NODES, [(["nvidia-smi", "-q", "-x"], 0, xml)])
    assert codes(folder) == {"device-unhealthy"} and seen(folder).accelerators[0].healthy is False


def test_mig_devices_replace_their_gpu(tmp_path: Path) -> None:
    migs = "".join(
        f"<mig_device><index>{n}</index><gpu_instance_id>{n + 1}</gpu_instance_id><fb_memory_usage><total>19968 MiB</total></fb_memory_usage></mig_device>"  # noqa: E501
        for n in range(2)
    )
    process = "<process_info><gpu_instance_id>2</gpu_instance_id><type>C</type></process_info>"
    xml = (
        '<nvidia_smi_log><gpu id="0:65:00.0"><uuid>GPU-1111</uuid><mig_mode><current_mig>Enabled</current_mig></mig_mode>'
        f"<mig_devices>{migs}</mig_devices><processes>{process}</processes></gpu></nvidia_smi_log>"
    )
    listed = "GPU 0: NVIDIA H100 (UUID: GPU-1111)\n  MIG 3g.40gb     Device  0: (UUID: MIG-aaaa-0)\n  MIG 3g.40gb     Device  1: (UUID: MIG-aaaa-1)\n"  # noqa: E501
    calls = [(["nvidia-smi", "-q", "-x"], 0, xml), (["nvidia-smi", "-L"], 0, listed)]
    hardware = seen(make(tmp_path / "r", {**H100, **LOADED}, NODES, calls))
    assert [(a.index, a.partition.profile if a.partition else None, a.uuid, a.busy) for a in hardware.accelerators] == [
        (0, "3g.40gb", "MIG-aaaa-0", False),
        (1, "3g.40gb", "MIG-aaaa-1", True),
    ]
    assert hardware.problems == ()


def test_ids_beat_names_and_names_are_the_last_resort() -> None:
    assert arch_of_device(0x2330) == "sm_90" and arch_of_device(0x2901) == "sm_100" and arch_of_device(0x0001) is None
    assert [arch_of_device(n) for n in (0x102D, 0x1024, 0x1180, 0x13C2)] == ["sm_37", "sm_35", "sm_30", "sm_52"], "Kepler is no stack's"
    assert arch_of_capability("12.0") == "sm_120" and arch_of_capability("[N/A]") is None
    names = {
        "NVIDIA H100 80GB HBM3": "sm_90",
        "NVIDIA A100-SXM4-40GB": "sm_80",
        "NVIDIA RTX A6000": "sm_86",
        "NVIDIA L40S": "sm_89",
        "Graphics Device": None,
    }
    assert {name: arch_of_name(name) for name in names} == names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA Graphics Device", None), ("Graphics Device", None), ("Device 2330", None), ("0x1002", None), ("N/A", None), ("xxx", None),
        ("Advanced Micro Devices, Inc. [AMD/ATI]", None), ("A100", "A100"), ("AMD Radeon Graphics", "AMD Radeon Graphics"),
    ],
)  # fmt: skip
def test_what_names_no_product_is_no_name(tmp_path: Path, text: str, name: str | None) -> None:
    assert product(text) == name
    calls = [(["nvidia-smi", "-L"], 0, f"GPU 0: {text} (UUID: GPU-00000001-0000-4000-8000-000000000001)\n")]
    (gpu,) = seen(make(tmp_path / "r", {**H100, **LOADED}, NODES, calls)).accelerators
    assert (gpu.name, gpu.arch, gpu.usable) == (name, "sm_90", True), "the PCI id tells the chip"


def test_text_and_xml_agree_on_renamed_versions() -> None:
    text = parse_text(
        "Driver Version : Deprecated, see KMD\nKMD Version        : 610.57.04\nCUDA UMD Version   : 13.3\n\nGPU 00000000:0C:00.0\n    Product Name   : X\n"  # noqa: E501
    )
    xml = parse_xml(
        "<nvidia_smi_log><driver_version>610.57.04 [Deprecated; x]</driver_version><kmd_version>610.57.04</kmd_version><cuda_umd_version>13.3</cuda_umd_version></nvidia_smi_log>"  # noqa: E501
    )
    assert (text.driver, text.max_cuda) == (xml.driver, xml.max_cuda) == ("610.57.04", "13.3")
    assert [gpu.pci for gpu in text.gpus] == ["0000:0c:00.0"]


def test_csv_and_process_list() -> None:
    line = "0, NVIDIA H100, GPU-1, 00000000:65:00.0, 0x233010DE, 580.95.05, 81559, 9.0, Default, Disabled, [N/A], Completed\n"
    report = parse_csv(line + "garbage\n", QUERY)
    assert [(gpu.device, gpu.memory_mib, gpu.mig) for gpu in report.gpus] == [(0x2330, 81559, False)] and report.malformed
    assert parse_apps("GPU-1, 4711\n[N/A], [N/A]\n") == {"GPU-1"}


def test_several_machines_in_one_list_keep_no_uuid() -> None:
    report = parse_list("GPU 0: NVIDIA H100 (UUID: GPU-aaaa)\nGPU 0: NVIDIA H100 (UUID: GPU-bbbb)\n")
    assert [(gpu.index, gpu.uuid) for gpu in report.gpus] == [(0, None)] and report.notes


def test_merging_fills_gaps_only() -> None:
    one = Report(source="a", gpus=(GpuReport(index=0, pci="0000:01:00.0", memory_mib=1, migs=(MigReport(number=0, memory_mib=5),)),))
    two = Report(
        source="b",
        max_cuda="12.8",
        gpus=(GpuReport(index=7, pci="0000:01:00.0", memory_mib=2, uuid="GPU-1", migs=(MigReport(number=0, profile="1g.5gb"),)),),
    )
    merged = merge([one, two])
    assert (merged.gpus[0].index, merged.gpus[0].memory_mib, merged.gpus[0].uuid, merged.max_cuda) == (0, 1, "GPU-1", "12.8")
    assert merged.gpus[0].migs == (MigReport(number=0, memory_mib=5, profile="1g.5gb"),)


def test_entities_are_refused() -> None:
    assert parse_xml('<!DOCTYPE a [<!ENTITY x "y">]><nvidia_smi_log/>').malformed


PIECES = st.sampled_from(
    [
        "GPU 0: ",
        "GPU 00000000:0C:00.0\n",
        "(UUID: GPU-1)",
        " : ",
        "\n",
        "    MIG Device\n",
        "        Index : 1\n",
        "<gpu>",
        "</gpu>",
        "<nvidia_smi_log>",
        "9" * 5000,
        ", ",
        "\x00",
        "é",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=30)), max_size=30).map("".join))
def test_parsers_never_raise(text: str) -> None:
    for parse in (parse_xml, parse_text, parse_list, parse_table):
        assert parse(text).source.startswith("nvidia-smi")
    assert parse_csv(text, QUERY).source
    parse_apps(text)


SCREEN = """\
| NVIDIA-SMI 610.57.04              KMD Version: 610.57.04     CUDA UMD Version: 13.3     |
|   0  NVIDIA GeForce RTX 2080 ...    Off |   00000000:0C:00.0 Off |                  N/A |
| 38%   33C    P8             38W /  250W |     211MiB /   8192MiB |      0%      Default |
| Processes:                                                                              |
|    0   N/A  N/A            1720      G   /usr/bin/gnome-shell                    173MiB |
"""


def test_the_bare_table_is_the_last_source() -> None:
    report = parse_table(SCREEN)
    assert (report.driver, report.max_cuda) == ("610.57.04", "13.3")
    assert [(gpu.name, gpu.pci, gpu.memory_mib, gpu.busy) for gpu in report.gpus] == [
        ("NVIDIA GeForce RTX 2080", "0000:0c:00.0", 8192, False)
    ]
    assert parse_table(SCREEN.replace("  G  ", "  C  ")).gpus[0].busy is True


DIVIDED = """\
| NVIDIA-SMI 590.48.01              Driver Version: 590.48.01      CUDA Version: 13.1     |
|   0  NVIDIA H100 80GB HBM3          On  |   00000000:1A:00.0 Off |                   On |
| N/A   42C    P0             98W /  700W |      59MiB /  81559MiB |     N/A      Default |
|                                         |                        |              Enabled |
|   1  NVIDIA H100 80GB HBM3          On  |   00000000:1B:00.0 Off |                    0 |
| N/A   42C    P0             98W /  700W |       0MiB /  81559MiB |      0%      Default |
|                                         |                        |             Disabled |
| MIG devices:                                                                            |
| GPU  GI  CI  MIG |              Shared Memory-Usage |        Vol|        Shared         |
|  0    2   0   0  |              26MiB / 40448MiB    | 60      0 |  3   0    3    0    3 |
|                  |               0MiB / 24739MiB    |           |                       |
|  0   10   0   1  |               9MiB /  9984MiB    | 16      0 |  1   0    1    0    1 |
|                  |               0MiB /  6184MiB    |           |                       |
| Processes:                                                                              |
|    0    2    0             4711      C   python                                   18MiB |
"""


def test_mig_devices_of_the_bare_table_with_the_names_of_the_list(tmp_path: Path) -> None:
    listed = (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-00000001-0000-4000-8000-000000000001)\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-00000001-0000-4000-8000-000000000011)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-00000001-0000-4000-8000-000000000012)\n"
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-00000002-0000-4000-8000-000000000002)\n"
    )
    files = {**pci("0000:1a:00.0", 0x10DE, 0x2330, 0x030200, "nvidia"), **pci("0000:1b:00.0", 0x10DE, 0x2330, 0x030200, "nvidia")}
    nodes = {path: {} for path in ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm")}
    calls = [(["nvidia-smi"], 0, DIVIDED), (["nvidia-smi", "-L"], 0, listed)]
    hardware = seen(make(tmp_path / "r", {**files, **LOADED}, nodes, calls))
    assert [(a.partition and a.partition.profile, a.memory_mib, a.busy, a.usable) for a in hardware.accelerators] == [
        ("3g.40gb", 40448, True, True), ("1g.10gb", 9984, False, True), (None, 81559, False, True),
    ]  # fmt: skip
    assert [a.partition.parent for a in hardware.accelerators if a.partition] == [0, 0]
    assert "partition-mixed" in {p.code for p in hardware.problems}


def test_a_query_leaves_out_what_the_driver_does_not_know(tmp_path: Path) -> None:
    csv = "name, memory.total [MiB], driver_version\nNVIDIA H100 PCIe, 81559 MiB, 580.95.05\n"
    calls = [(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv"], 0, csv)]
    (gpu,) = seen(make(tmp_path / "r", {**H100, **LOADED}, NODES, calls)).accelerators
    assert (gpu.name, gpu.memory_mib, gpu.usable) == ("NVIDIA H100 PCIe", 81559, True)
