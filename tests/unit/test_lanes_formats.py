"""Formats and their drifts, one small made-up machine for each: what a lane says of it, and what it must not say."""

# ruff: noqa: E501 - tables of vendors' texts are not broken

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hosts import kfd_partitions, make, pci, seen

from fl.hardware import Hardware
from fl.lanes.nvidia_smi import parse_csv, parse_list, parse_text, parse_xml
from fl.lanes.rocm_smi import parse_amd_smi, parse_rocm_smi_json, parse_rocm_smi_text
from fl.lanes.rocminfo import parse_rocminfo

Nodes = dict[str, dict[str, Any]]
SMI = ["nvidia-smi", "-q", "-x"]
H100 = pci("0000:65:00.0", 0x10DE, 0x2330, 0x030200, "nvidia")
LOADED = {
    "/sys/module/nvidia/version": "580.95.05\n",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  x\n",
}
NVIDIA: Nodes = {"/dev/nvidiactl": {}, "/dev/nvidia-uvm": {}, "/dev/nvidia0": {}}
KFD = "/sys/devices/virtual/kfd/kfd/topology/nodes"


def codes(hardware: Hardware) -> list[tuple[str, str]]:
    return [(problem.code, problem.severity) for problem in hardware.problems]


# --- NVIDIA -------------------------------------------------------------------------------------------------------------------------


def test_a_jetson_by_its_device_tree_alone(tmp_path: Path) -> None:
    files = {
        "/proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\x00nvidia,tegra234\x00",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\x00",
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (x)\n",
    }
    listed = "GPU 0: Orin (nvgpu) (UUID: 54c8a1e2-1111-5555-9999-0123456789ab)\n"
    hardware = seen(make(tmp_path / "r", files, {"/dev/nvidiactl": {}, "/dev/nvidia0": {}}, [(["nvidia-smi", "-L"], 0, listed)]))
    (gpu,) = hardware.accelerators
    assert (gpu.name, gpu.arch, gpu.uuid, gpu.memory_mib, hardware.drivers["nvidia"]["version"]) == (
        "Orin (nvgpu)",
        "sm_87",
        None,
        None,
        "540.4.0",
    )
    assert hardware.arch == "aarch64"


@pytest.mark.parametrize(
    ("chip", "arch"), [("tegra264", "sm_110"), ("tegra234", "sm_87"), ("tegra194", "sm_72"), ("tegra210", "sm_53"), ("tegra999", None)]
)
def test_a_jetson_without_any_tool(tmp_path: Path, chip: str, arch: str | None) -> None:
    files = {
        "/proc/device-tree/compatible": f"nvidia,{chip}\x00nvidia,tegra\x00",
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Kernel Module for aarch64  35.4.1  Release Build  (x)\n",
    }
    hardware = seen(make(tmp_path / "r", files))
    assert [(a.arch, a.usable) for a in hardware.accelerators] == [(arch, None)]
    assert hardware.drivers["nvidia"] == {"version": None, "max_cuda": None}, "35.4.1 is the release of L4T"


def test_memory_that_is_not_available_is_unknown() -> None:
    xml = parse_xml(
        '<nvidia_smi_log><gpu id="0"><product_name>NVIDIA GB10</product_name><fb_memory_usage><total>N/A</total></fb_memory_usage></gpu></nvidia_smi_log>'
    )
    csv = parse_csv("0, NVIDIA GB10, [N/A], 12.1\n", ("index", "name", "memory.total", "compute_cap"))
    assert [gpu.memory_mib for gpu in (*xml.gpus, *csv.gpus)] == [None, None] and not any(gpu.broken for gpu in (*xml.gpus, *csv.gpus))


def test_versions_in_every_era() -> None:
    old = parse_xml(
        "<nvidia_smi_log><driver_version>390.157</driver_version><attached_gpus>1</attached_gpus><gpu id='0'/></nvidia_smi_log>"
    )
    assert (old.driver, old.max_cuda) == ("390.157", None)
    new = parse_text("KMD Version : 610.43.02\nCUDA UMD Version : Not Found\n")
    assert (new.driver, new.max_cuda) == ("610.43.02", None)


def mig(compute: int, process: int | None) -> str:
    process_info = f"<process_info><gpu_instance_id>1</gpu_instance_id><compute_instance_id>{process}</compute_instance_id><type>C</type></process_info>"
    devices = "".join(
        f"<mig_device><index>{n}</index><gpu_instance_id>1</gpu_instance_id><compute_instance_id>{n}</compute_instance_id>"
        "<fb_memory_usage><total>71680 MiB</total></fb_memory_usage></mig_device>"
        for n in range(compute)
    )
    return (
        '<nvidia_smi_log><gpu id="00000000:65:00.0"><uuid>GPU-1</uuid><mig_mode><current_mig>Enabled</current_mig></mig_mode>'
        f"<mig_devices>{devices}</mig_devices><processes>{process_info if process is not None else ''}</processes></gpu></nvidia_smi_log>"
    )


@pytest.mark.parametrize(("process", "busy"), [(0, [True, False]), (1, [False, True]), (None, [False, False])])
def test_compute_instances_share_a_gpu_instance_but_not_its_processes(tmp_path: Path, process: int | None, busy: list[bool]) -> None:
    listed = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n" + "".join(f"  MIG 1c.3g.71gb  Device  {n}: (UUID: MIG-{n}{n}{n}{n})\n" for n in range(2))
    hardware = seen(make(tmp_path / "r", {**H100, **LOADED}, NVIDIA, [(SMI, 0, mig(2, process)), (["nvidia-smi", "-L"], 0, listed)]))
    assert [a.partition.profile if a.partition else None for a in hardware.accelerators] == ["1c.3g.71gb"] * 2
    assert [a.busy for a in hardware.accelerators] == busy and codes(hardware) == []


@pytest.mark.parametrize("profile", ["1g.10gb", "1g.10gb+me", "1g.24gb-me", "1g.24gb+me.all", "1g.24gb+gfx", "2c.4g.48gb", "7g.80gb"])
def test_names_of_mig_profiles(profile: str) -> None:
    (gpu,) = parse_list(f"GPU 0: NVIDIA H100 (UUID: GPU-1111)\n  MIG {profile}     Device  0: (UUID: MIG-1111-2222)\n").gpus
    assert [m.profile for m in gpu.migs] == [profile]


def test_mig_on_without_a_device(tmp_path: Path) -> None:
    hardware = seen(make(tmp_path / "r", {**H100, **LOADED}, NVIDIA, [(SMI, 0, mig(0, None))]))
    assert codes(hardware) == [("partition-mixed", "warning")] and hardware.accelerators[0].partition is None
    assert hardware.accelerators[0].usable is False, "CUDA sees MIG devices only"


def test_mig_on_where_nobody_lists_its_devices(tmp_path: Path) -> None:
    csv = "index, name, memory.total [MiB], mig.mode.current\n0, NVIDIA H100 80GB HBM3, 81559 MiB, Enabled\n"
    calls = [(["nvidia-smi", "--query-gpu=index,name,memory.total,mig.mode.current", "--format=csv"], 0, csv)]
    hardware = seen(make(tmp_path / "r", {**H100, **LOADED}, NVIDIA, calls))
    assert codes(hardware) == [("partition-mixed", "warning")] and hardware.accelerators[0].usable is None


def test_what_a_site_wrapper_prints_before_the_answer() -> None:
    assert [
        gpu.index
        for gpu in parse_list("srun: job 7 queued\nnode1\nGPU 0: NVIDIA A100 (UUID: GPU-1111)\nGPU 1: NVIDIA A100 (UUID: GPU-2222)\n").gpus
    ] == [0, 1]
    two = parse_list("GPU 0: NVIDIA A100 (UUID: GPU-1111)\nGPU 1: x (UUID: GPU-2222)\nGPU 0: NVIDIA A100 (UUID: GPU-3333)\n")
    assert [(gpu.index, gpu.uuid) for gpu in two.gpus] == [(0, None), (1, None)] and two.notes


def eight() -> dict[str, str]:
    files: dict[str, str] = dict(LOADED)
    for n in range(8):
        files |= pci(f"0000:{0x10 + n:02x}:00.0", 0x10DE, 0x2330, 0x030200, "nvidia")
        files[f"/proc/driver/nvidia/gpus/0000:{0x10 + n:02x}:00.0/information"] = (
            f"Model: NVIDIA H100\nGPU UUID: GPU-{n:08x}-0000-4000-8000-000000000000\nDevice Minor: {n}\n"
        )
    return files


def test_a_container_with_one_of_eight_gpus(tmp_path: Path) -> None:
    hardware = seen(make(tmp_path / "r", eight(), {"/dev/nvidiactl": {}, "/dev/nvidia-uvm": {}, "/dev/nvidia5": {}}))
    assert [a.index for a in hardware.accelerators if a.usable is not False] == [5] and len(hardware.accelerators) == 8
    assert (
        hardware.accelerators[5].nodes == ("/dev/nvidia5",) and hardware.accelerators[5].uuid == "GPU-00000005-0000-4000-8000-000000000000"
    )
    assert codes(hardware) == [("nodes-missing", "warning")] and "6 more" in hardware.problems[0].message


def test_a_container_that_was_given_none(tmp_path: Path) -> None:
    hardware = seen(make(tmp_path / "r", eight()))
    assert codes(hardware) == [("nodes-missing", "error")] and not any(a.usable for a in hardware.accelerators)


def test_a_gpu_that_is_meant_for_a_virtual_machine(tmp_path: Path) -> None:
    files = {**H100, **LOADED, **pci("0000:66:00.0", 0x10DE, 0x2330, 0x030200, "vfio-pci")}
    hardware = seen(
        make(
            tmp_path / "r",
            files,
            NVIDIA,
            [(SMI, 0, '<nvidia_smi_log><gpu id="0000:65:00.0"><minor_number>0</minor_number></gpu></nvidia_smi_log>')],
        )
    )
    assert [a.usable for a in hardware.accelerators] == [True, False] and codes(hardware) == [("no-driver", "warning")]
    assert "vfio-pci" in hardware.problems[0].message


def test_masked_identifiers_of_a_kernel_file(tmp_path: Path) -> None:
    files = {
        **H100,
        **LOADED,
        "/proc/driver/nvidia/gpus/0000:65:00.0/information": "Model: NVIDIA H100\nGPU UUID: GPU-????????-????-????-????-????????????\nDevice Minor: 0\n",
    }
    assert [a.uuid for a in seen(make(tmp_path / "r", files, NVIDIA)).accelerators] == [None]


@pytest.mark.parametrize("options", [["-q", "-x"], [], ["-L"], ["-q"]])
def test_a_failure_is_seen_whichever_call_was_recorded(tmp_path: Path, options: list[str]) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.126\n"
    hardware = seen(make(tmp_path / "r", {**H100, **LOADED}, NVIDIA, [(["nvidia-smi", *options], 18, said)]))
    assert codes(hardware) == [("driver-library-mismatch", "error")] and hardware.accelerators[0].usable is False


def test_library_and_module_of_different_versions(tmp_path: Path) -> None:
    text = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 590.48\n"
    for name, call in (("a", (["fl-nvml"], 18, text)), ("b", (SMI, 18, text))):
        hardware = seen(make(tmp_path / name, {**H100, **LOADED}, NVIDIA, [call]))
        assert codes(hardware) == [("driver-library-mismatch", "error")] and hardware.accelerators[0].usable is False
        assert hardware.drivers["nvidia"]["version"] == "580.95.05"


# --- AMD ----------------------------------------------------------------------------------------------------------------------------

MODES = [("SPX", "NPS1", 1, 8), ("DPX", "NPS2", 2, 4), ("QPX", "NPS4", 4, 2), ("CPX", "NPS4", 8, 1)]


@pytest.mark.parametrize(("mode", "memory", "each", "xcc"), MODES)
@pytest.mark.parametrize("place", ["/sys/bus/pci/devices", "/sys/module/amdgpu/drivers/pci:amdgpu", None])
def test_compute_partitions(tmp_path: Path, mode: str, memory: str, each: int, xcc: int, place: str | None) -> None:
    files, nodes = kfd_partitions(2, each)
    files = {path: text.replace("num_xcc 1", f"num_xcc {xcc}") for path, text in files.items()}
    for device in ("0000:10:00.0", "0000:14:00.0") if place else ():
        files[f"{place}/{device}/current_compute_partition"] = mode + "\n"
        files[f"{place}/{device}/current_memory_partition"] = memory + "\n"
    hardware = seen(make(tmp_path / "r", files, nodes))
    assert len(hardware.accelerators) == 2 * each and all(a.usable for a in hardware.accelerators) and codes(hardware) == []
    profiles = {a.partition.profile if a.partition else None for a in hardware.accelerators}
    wanted = f"{mode}_{memory}".lower() if place else mode.lower()
    assert profiles == ({None} if each == 1 else {wanted})


def test_more_than_ten_nodes_are_in_numeric_order(tmp_path: Path) -> None:
    files, nodes = kfd_partitions(3, 8)
    hardware = seen(make(tmp_path / "r", files, nodes))
    assert [a.nodes[0] for a in hardware.accelerators] == [f"/dev/dri/renderD{128 + n}" for n in range(24)]


def test_a_container_with_two_of_eight_devices(tmp_path: Path) -> None:
    files, nodes = kfd_partitions(8, 1)
    unreadable = {}
    for n in range(8):
        if n not in (3, 6):
            unreadable[f"{KFD}/{n + 1}/properties"] = "EPERM"
            del nodes[f"/dev/dri/renderD{128 + n}"]
    folder = make(tmp_path / "r", files, nodes)
    (folder / "unreadable.yaml").write_text("".join(f"{path.lstrip('/')}: {error}\n" for path, error in unreadable.items()))
    hardware = seen(folder)
    assert [(a.index, a.nodes) for a in hardware.accelerators if a.usable] == [(3, ("/dev/dri/renderD131",)), (6, ("/dev/dri/renderD134",))]
    assert codes(hardware) == [("no-permission", "warning")]


def test_render_nodes_of_a_container_without_the_kernels_refusal(tmp_path: Path) -> None:
    files, nodes = kfd_partitions(4, 1)
    del nodes["/dev/dri/renderD128"], nodes["/dev/dri/renderD129"]
    hardware = seen(make(tmp_path / "r", files, nodes))
    assert [a.usable for a in hardware.accelerators] == [False, False, True, True] and codes(hardware) == [("nodes-missing", "warning")]


def gpu_node(number: int, properties: str, banks: Mapping[int, int]) -> dict[str, str]:
    files = {f"{KFD}/{number}/properties": properties.replace(", ", "\n") + "\n", f"{KFD}/{number}/gpu_id": f"{1000 + number}\n"}
    for place, (heap, size) in enumerate(banks.items()):
        files[f"{KFD}/{number}/mem_banks/{place}/properties"] = f"heap_type {heap}\nsize_in_bytes {size}\n"
    return files


CPU_NODE = {f"{KFD}/0/properties": "cpu_cores_count 32\nsimd_count 0\n"}
ONE: Nodes = {"/dev/kfd": {"gid": 109}, "/dev/dri/renderD128": {"gid": 109}}


def test_strix_halo_computes_in_the_systems_memory(tmp_path: Path) -> None:
    properties = "cpu_cores_count 0, simd_count 80, simd_per_cu 2, gfx_target_version 110501, device_id 5510, location_id 50432, drm_render_minor 128, unique_id 0"
    files = {**CPU_NODE, **gpu_node(1, properties, {1: 512 << 20}), **pci("0000:c5:00.0", 0x1002, 0x1586, 0x030000, "amdgpu")}
    files |= {
        "/sys/bus/pci/devices/0000:c5:00.0/mem_info_gtt_total": f"{96 << 30}\n",
        "/sys/bus/pci/devices/0000:c5:00.0/mem_info_vram_total": f"{512 << 20}\n",
    }
    (apu,) = seen(make(tmp_path / "r", files, ONE)).accelerators
    assert (apu.arch, apu.memory_mib, apu.usable, apu.uuid) == ("gfx1151", 96 << 10, True, None)


def test_an_apu_without_any_memory_of_its_own_is_still_there(tmp_path: Path) -> None:
    properties = "cpu_cores_count 32, simd_count 80, simd_per_cu 2, gfx_target_version 110501, device_id 5510, location_id 50432, drm_render_minor 128"
    (apu,) = seen(make(tmp_path / "r", gpu_node(0, properties, {0: 128 << 30}), ONE)).accelerators
    assert (apu.arch, apu.memory_mib, apu.usable) == ("gfx1151", None, True)


@pytest.mark.parametrize("kind", [0x030000, 0x038000])
def test_graphics_inside_a_processor_beside_a_card(tmp_path: Path, kind: int) -> None:
    files = {
        **CPU_NODE,
        **gpu_node(1, "simd_count 4, simd_per_cu 2, gfx_target_version 100306, device_id 5710, location_id 2816, drm_render_minor 128", {}),
        **gpu_node(
            2,
            "simd_count 192, simd_per_cu 2, gfx_target_version 110000, device_id 29772, location_id 768, drm_render_minor 129",
            {1: 24 << 30},
        ),
        **pci("0000:0b:00.0", 0x1002, 0x164E, kind, "amdgpu"),
        **pci("0000:03:00.0", 0x1002, 0x744C, 0x030000, "amdgpu"),
    }
    (card,) = seen(make(tmp_path / "r", files, {**ONE, "/dev/dri/renderD129": {}})).accelerators
    assert (card.index, card.arch, card.nodes) == (1, "gfx1100", ("/dev/dri/renderD129",)), "the runtime counts both"


def test_graphics_inside_a_processor_alone_is_no_accelerator(tmp_path: Path) -> None:
    files = {**pci("0000:0b:00.0", 0x1002, 0x1638, 0x038000, "amdgpu"), **H100, **LOADED}
    assert [a.lane for a in seen(make(tmp_path / "r", files, NVIDIA)).accelerators] == ["cuda"]


def test_a_kernel_without_gfx_target_version(tmp_path: Path) -> None:
    properties = "cpu_cores_count 0, simd_count 256, simd_per_cu 4, device_id 26720, location_id 768, drm_render_minor 128"
    (card,) = seen(make(tmp_path / "r", {**CPU_NODE, **gpu_node(1, properties, {1: 16 << 30})}, ONE)).accelerators
    assert (card.arch, card.pci, card.memory_mib) == ("gfx900", "0000:03:00.0", 16384)


def test_the_drivers_version_is_known_with_dkms_only(tmp_path: Path) -> None:
    files, nodes = kfd_partitions(1, 1)
    assert seen(make(tmp_path / "a", files, nodes)).drivers["amdgpu"]["version"] is None
    assert seen(make(tmp_path / "b", {**files, "/sys/module/amdgpu/version": "6.16.6\n"}, nodes)).drivers["amdgpu"]["version"] == "6.16.6"


AMD_SMI = '{"gpu": 1, "asic": {"market_name": "AMD Instinct MI355X", "device_id": "0x75a3", "target_graphics_version": "gfx950", "asic_serial": "0x0A1B2C3D4E5F6071"}, "bus": {"bdf": "0000:05:00.0"}, "vram": {"size": {"value": 288, "unit": "GB"}}, "driver": {"version": "6.16.6"}}'


@pytest.mark.parametrize(
    "text",
    [
        f"[{AMD_SMI}]",
        f'{{"gpu_data": [{AMD_SMI}]}}',
        f"WARNING: [x] not in group {{render}}\n[{AMD_SMI}]\nbye",
        f'\n{{"gpu_data": [{AMD_SMI}, 7, null]}}',
    ],
)
def test_amd_smi_with_and_without_its_wrapper(text: str) -> None:
    (gpu,) = parse_amd_smi(text)
    assert (gpu.index, gpu.name, gpu.arch, gpu.memory_mib, gpu.driver) == (1, "AMD Instinct MI355X", "gfx950", 288 * 1024, "6.16.6")


def test_rocm_smi_names_in_every_spelling() -> None:
    for key in ("Card series", "Card Series", "Card model", "Card Model", "Device Name"):
        assert [
            c.name for c in parse_rocm_smi_json(f'{{"card0": {{"{key}": "AMD Instinct MI100", "VRAM Total Memory (B)": "34342961152"}}}}')
        ] == ["AMD Instinct MI100"]
        if key != "Device Name":
            assert [
                c.name
                for c in parse_rocm_smi_text(
                    f"WARNING: AMD GPU device(s) is/are in a low-power state.\nGPU[0]\t\t: {key}: \t\tAMD Instinct MI100\n"
                )
            ] == ["AMD Instinct MI100"]


ROCMINFO = """ROCk module is loaded
Agent 1
*******
  Name:                    AMD EPYC 9654 96-Core Processor
  Uuid:                    CPU-XX
  Device Type:             CPU
Agent 2
*******
  Name:                    gfx90a
  Uuid:                    GPU-5e1f2a3b4c5d6e7f
  Marketing Name:          AMD Instinct MI250X
  Device Type:             GPU
  Chip ID:                 29704(0x7408)
  BDFID:                   49408
  Pool Info:
    Pool 1
      Size:                    67092480(0x3ffc000) KB
"""


@pytest.mark.parametrize("call", [["amd-smi", "static", "--json"], ["rocm-smi", "--showproductname"], ["rocminfo"]])
def test_an_amd_tool_that_fails_is_told_with_its_words(tmp_path: Path, call: list[str]) -> None:
    said = "Unable to open /dev/kfd read-write: Invalid argument\n"
    folder = make(tmp_path / "r", pci("0000:c1:00.0", 0x1002, 0x7408, 0x038000, "amdgpu"), ONE, [(call, 1, said)])
    assert [(p.code, "Invalid argument" in p.message) for p in seen(folder).problems] == [("tool-failed", True)]


def test_rocminfo_is_the_last_source(tmp_path: Path) -> None:
    (gpu,) = parse_rocminfo(ROCMINFO)
    assert (gpu.name, gpu.arch, gpu.device, gpu.memory_mib, gpu.pci, gpu.unique_id) == (
        "AMD Instinct MI250X",
        "gfx90a",
        0x7408,
        65520,
        "0000:c1:00.0",
        "5e1f2a3b4c5d6e7f",
    )
    folder = make(tmp_path / "r", pci("0000:c1:00.0", 0x1002, 0x7408, 0x038000, "amdgpu"), ONE, [(["rocminfo"], 0, ROCMINFO)])
    (found,) = seen(folder).accelerators
    assert (found.memory_mib, found.uuid, found.usable) == (65520, "GPU-5e1f2a3b4c5d6e7f", True)
