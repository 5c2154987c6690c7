"""Which lane and which devices a run gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hosts import make, pci, recorded, seen

from fl.devices import choose_devices, choose_lane, restrict
from fl.errors import HardwareError
from fl.hardware import Accelerator, Hardware, Partition
from fl.lanes import LANES


def indices(hardware: Hardware, lane: str, spec: str | None = None) -> list[int]:
    return [a.index for a in choose_devices(hardware, choose_lane(hardware, lane), spec)[0]]


def test_auto_takes_the_one_usable_lane() -> None:
    lanes = {
        "h100x8-driver580": "cuda",
        "mi300x8-spx": "rocm",
        "ascend-a2x8-one-busy": "ascend",
        "intel-max1100x2": "xpu",
        "cpu-only": "cpu",
        "laptop-4060-igpu": "cuda",
    }
    assert {name: choose_lane(recorded(name)) for name in lanes} == lanes


def test_auto_with_two_usable_lanes_names_both_and_the_way_out() -> None:
    with pytest.raises(HardwareError) as caught:
        choose_lane(recorded("two-lanes"))
    assert "Tesla T4" in caught.value.message and "910B4" in caught.value.message
    assert caught.value.remedy.splitlines() == ["--hw cuda", "--hw ascend", "--hw cpu"] and caught.value.exit_code == 3
    assert choose_lane(recorded("two-lanes"), "ascend") == "ascend"


def test_present_but_unusable_is_never_the_cpu() -> None:
    for requested in ("auto", "rocm"):
        with pytest.raises(HardwareError) as caught:
            choose_lane(recorded("mi210x2-no-permission"), requested)
        assert "cannot be opened" in caught.value.message and "usermod" in caught.value.remedy and "--hw cpu" in caught.value.remedy
    assert choose_lane(recorded("mi210x2-no-permission"), "cpu") == "cpu"


def test_unknown_is_not_refused(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "r",
        pci("0000:c1:00.0", 0x19E5, 0xD802, 0x120000, "devdrv"),
        {"/dev/davinci0": {}, "/dev/davinci_manager": {}},
        [(["npu-smi", "info"], 7, "x")],
    )
    hardware = seen(folder)
    assert hardware.accelerators[0].usable is None and choose_lane(hardware) == "ascend" and indices(hardware, "ascend") == [0]


def test_a_lane_that_is_not_there() -> None:
    with pytest.raises(HardwareError, match="no NVIDIA device found; this machine has 8 x AMD Instinct MI300X OAM") as caught:
        choose_lane(recorded("mi300x8-spx"), "cuda")
    assert "--hw rocm" in caught.value.remedy
    with pytest.raises(HardwareError, match="no accelerator"):
        choose_lane(recorded("cpu-only"), "cuda")
    with pytest.raises(HardwareError) as typed:
        choose_lane(recorded("cpu-only"), "rocn")
    assert typed.value.remedy == "--hw rocm"


def test_by_default_all_usable_ones_busy_with_a_note() -> None:
    chosen, notes = choose_devices(recorded("h100x8-driver580"), "cuda")
    assert len(chosen) == 8 and "device 1 busy" in notes[0]


def test_by_default_busy_cards_of_an_exclusive_lane_are_left_out() -> None:
    chosen, notes = choose_devices(recorded("ascend-a2x8-one-busy"), "ascend")
    assert [a.index for a in chosen] == [0, 1, 2, 4, 5, 6, 7] and "device 3 left out" in notes[0]
    with pytest.raises(HardwareError, match="busy"):
        choose_devices(recorded("ascend-a2x8-one-busy"), "ascend", "3")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("2,5", [2, 5]),
        ("5,2", [5, 2]),
        ("1-3", [1, 2, 3]),
        ("free", [0, 2, 3, 4, 5, 6, 7]),
        ("count:2", [0, 2]),
        ("count:8", list(range(8))),
        ("GPU-00000003-0000-4000-8000-000000000003", [2]),
        ("GPU-00000003", [2]),
        ("0000:5d:00.0", [3]),
        ("5D:00.0", [3]),
        ("0,0", [0]),
    ],
)
def test_devices_by_every_name(spec: str, expected: list[int]) -> None:
    assert indices(recorded("h100x8-driver580"), "cuda", spec) == expected


@pytest.mark.parametrize("spec", ["8", "x", "count:9", "count:0", "GPU-0000000", "", "1,,2", "3-1"])
def test_what_is_not_there_is_refused(spec: str) -> None:
    if spec == "":
        with pytest.raises(HardwareError):
            choose_devices(recorded("h100x8-driver580"), "cuda", spec)
        return
    with pytest.raises(HardwareError) as caught:
        choose_devices(recorded("h100x8-driver580"), "cuda", spec)
    assert caught.value.remedy


def test_an_unusable_device_by_name_is_refused() -> None:
    hardware = recorded("h100x8-driver580")
    broken = replace(hardware, accelerators=tuple(replace(a, usable=a.index != 2) for a in hardware.accelerators))
    with pytest.raises(HardwareError, match="device 2"):
        choose_devices(broken, "cuda", "2")
    chosen, notes = choose_devices(broken, "cuda")
    assert 2 not in [a.index for a in chosen] and "device 2 left out" in notes[0]


def test_one_mig_device_a_run() -> None:
    parts = tuple(
        Accelerator(lane="cuda", index=n, memory_mib=size, busy=busy, usable=True, partition=Partition(kind="mig", profile=None, parent=0))
        for n, (size, busy) in enumerate([(40448, True), (9984, False), (20096, False)])
    )
    hardware = Hardware(os="linux", arch="x86_64", accelerators=parts)
    assert indices(hardware, "cuda") == [2] and indices(hardware, "cuda", "0") == [0]
    with pytest.raises(HardwareError, match="cannot talk to each other"):
        choose_devices(hardware, "cuda", "1,2")


def test_the_cpu_lane_has_no_devices() -> None:
    assert choose_devices(recorded("cpu-only"), "cpu") == ((), ())
    with pytest.raises(HardwareError):
        choose_devices(recorded("cpu-only"), "cpu", "0")


def left(hardware: Hardware, lane: str, environment: dict[str, str]) -> tuple[list[int], tuple[str, ...]]:
    """Indices that the environment leaves, and what is said of it."""
    restricted, notes = restrict(replace(hardware, replayed=False), environment)
    assert len(restricted.accelerators) == len(hardware.accelerators), "runtimes count all devices, so all stay listed"
    return [a.index for a in restricted.accelerators if a.lane == lane and (a.lane, a.index) not in restricted.withheld], notes


UUID = "GPU-0000000{}-0000-4000-8000-00000000000{}".format


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, [2, 5]),
        ({"CUDA_VISIBLE_DEVICES": "5, 2"}, [2, 5]),
        ({"CUDA_VISIBLE_DEVICES": UUID(3, 3)}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-00000003,GPU-00000001"}, [0, 2]),
        ({"CUDA_VISIBLE_DEVICES": "gpu-00000003"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "0,99,1"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-ffff"}, []),
        ({"CUDA_VISIBLE_DEVICES": "GPU-0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "9" * 5000}, []),
        ({"SLURM_JOB_GPUS": "2,3"}, [2, 3]),
        ({"SLURM_JOB_GPUS": "0-3", "SLURM_STEP_GPUS": "1"}, [1]),
        ({"SLURM_JOB_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "3"}, [3]),
        ({"NVIDIA_VISIBLE_DEVICES": UUID(1, 1), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, [0]),
    ],
)
def test_the_callers_own_variables_restrict(environment: dict[str, str], expected: list[int]) -> None:
    indices, notes = left(recorded("h100x8-driver580"), "cuda", {**environment, "ROCR_VISIBLE_DEVICES": "0"})
    name = next(iter(environment)) if len(environment) == 1 or "NVIDIA_VISIBLE_DEVICES" in environment else ""
    assert indices == expected and len(notes) == 1 and notes[0].startswith(name)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NVIDIA_VISIBLE_DEVICES": UUID(1, 1)},  # on a host it is a wish for containers
        {"NVIDIA_VISIBLE_DEVICES": "all", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"NVIDIA_VISIBLE_DEVICES": "void", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"SLURM_JOB_GPUS": "gpu:h100"},
        {"SLURM_JOB_ID": "7"},
    ],
)
def test_what_grants_nothing_restricts_nothing(environment: dict[str, str]) -> None:
    assert left(recorded("h100x8-driver580"), "cuda", environment) == (list(range(8)), ())


def test_a_cgroup_that_hides_the_others_counts_from_zero() -> None:
    hardware = recorded("h100x8-driver580")
    hidden = replace(hardware, accelerators=tuple(replace(a, usable=a.index < 2) for a in hardware.accelerators))
    restricted, notes = restrict(replace(hidden, replayed=False), {"SLURM_JOB_GPUS": "4,5", "CUDA_VISIBLE_DEVICES": "0,1"})
    assert indices(restricted, "cuda") == [0, 1] and "CUDA_VISIBLE_DEVICES=0,1" in notes[0]
    restricted, notes = restrict(replace(hidden, replayed=False), {"SLURM_JOB_GPUS": "4,5"})
    assert indices(restricted, "cuda") == [0, 1] and "counted from 0" in notes[0]


def test_mig_devices_by_uuid_and_by_the_index_of_their_gpu() -> None:
    hardware = Hardware(os="linux", arch="x86_64", accelerators=mig_devices())
    for value, expected in {"MIG-2": [2], "1": [2], "0": [0], "2": [4], "MIG-0,MIG-3": [0, 3], "MIG-": [], "3": []}.items():
        assert left(hardware, "cuda", {"CUDA_VISIBLE_DEVICES": value})[0] == expected, value


def mig_devices() -> tuple[Accelerator, ...]:
    """Two GPUs cut in two, and a whole one."""
    cut = [
        Accelerator(lane="cuda", index=n, uuid=f"MIG-{n}", usable=True, partition=Partition(kind="mig", profile="3g.40gb", parent=n // 2))
        for n in range(4)
    ]
    return (*cut, Accelerator(lane="cuda", index=4, uuid="GPU-2", usable=True))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ROCR_VISIBLE_DEVICES": "1,3"}, [1, 3]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-1111222233330003"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "2"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "1"}, [5]),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6", "CUDA_VISIBLE_DEVICES": "0,2"}, [4, 6]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "4", "HIP_VISIBLE_DEVICES": "4"}, []),
        ({"SLURM_JOB_GPUS": "7"}, [7]),
    ],
)
def test_amd_has_two_levels(environment: dict[str, str], expected: list[int]) -> None:
    assert left(recorded("mi300x8-spx"), "rocm", environment)[0] == expected


def test_amd_nodes_that_the_kernel_refuses_are_not_counted() -> None:
    hardware = recorded("mi300x8-spx")
    refused = replace(hardware.accelerators[0], usable=False, pci=None, uuid=None, nodes=())
    hidden = replace(hardware, accelerators=(refused, *(replace(a, uuid=None) for a in hardware.accelerators[1:])))
    assert left(hidden, "rocm", {"ROCR_VISIBLE_DEVICES": "0,2"})[0] == [1, 3]
    assert LANES["rocm"].visibility([hidden.accelerators[1]], hidden)["ROCR_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ASCEND_RT_VISIBLE_DEVICES": "0,2"}, [0, 2]),
        ({"ASCEND_VISIBLE_DEVICES": "4-5", "KUBERNETES_SERVICE_HOST": "x"}, [4, 5]),
        ({"ASCEND_VISIBLE_DEVICES": "Ascend910-1,Ascend910-2", "KUBERNETES_SERVICE_HOST": "x"}, [1, 2]),
        ({"ASCEND_VISIBLE_DEVICES": "4-5"}, list(range(8))),
        ({"SLURM_JOB_GPUS": "0"}, list(range(8))),
    ],
)
def test_ascend_counts_the_cards_that_are_here(environment: dict[str, str], expected: list[int]) -> None:
    assert left(recorded("ascend-a2x8-one-busy"), "ascend", environment)[0] == expected


def test_one_ascend_card_of_a_container_is_number_zero_for_the_runtime() -> None:
    card = Accelerator(lane="ascend", index=5, usable=True, nodes=("/dev/davinci5",))
    hardware = Hardware(os="linux", arch="aarch64", accelerators=(card,))
    assert left(hardware, "ascend", {"ASCEND_RT_VISIBLE_DEVICES": "0"})[0] == [5]
    assert left(hardware, "ascend", {"ASCEND_RT_VISIBLE_DEVICES": "5"})[0] == []


def test_level_zero_counts_tiles_unless_told_not_to() -> None:
    cards = tuple(Accelerator(lane="xpu", index=n, name="Intel(R) Data Center GPU Max 1550", usable=True) for n in range(3))
    hardware = Hardware(os="linux", arch="x86_64", accelerators=cards)
    for value, hierarchy, expected in [
        ("2,3", "FLAT", [1]),
        ("0,1", "COMPOSITE", [0, 1]),
        ("1.0", "COMPOSITE", [1]),
        ("0,5", "FLAT", [0, 2]),
    ]:
        assert left(hardware, "xpu", {"ZE_AFFINITY_MASK": value, "ZE_FLAT_DEVICE_HIERARCHY": hierarchy})[0] == expected
    assert left(recorded("intel-max1100x2"), "xpu", {"ZE_AFFINITY_MASK": "1"})[0] == [1]


def test_mixed_gpus_are_counted_in_pci_order_and_that_is_said() -> None:
    cards = tuple(Accelerator(lane="cuda", index=n, arch=arch, usable=True) for n, arch in enumerate(("sm_75", "sm_90")))
    hardware = Hardware(os="linux", arch="x86_64", accelerators=cards)
    assert "fastest" in left(hardware, "cuda", {"CUDA_VISIBLE_DEVICES": "0"})[1][0]
    assert "fastest" not in left(hardware, "cuda", {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})[1][0]


def test_out_of_reach_is_said_with_the_variable() -> None:
    live = replace(recorded("h100x8-driver580"), replayed=False)
    hardware, _ = restrict(live, {"CUDA_VISIBLE_DEVICES": "2,5"})
    assert indices(hardware, "auto") == [2, 5] and indices(hardware, "cuda", "free") == [2, 5]
    with pytest.raises(HardwareError, match=r"device 0 is out of reach: CUDA_VISIBLE_DEVICES=2,5 leaves devices 2, 5"):
        choose_devices(hardware, "cuda", "0")
    nothing, _ = restrict(live, {"CUDA_VISIBLE_DEVICES": ""})
    for lane in ("auto", "cuda"):
        with pytest.raises(HardwareError, match="CUDA_VISIBLE_DEVICES= leaves no device"):
            choose_lane(nothing, lane)


def test_an_accelerator_that_no_lane_supports_is_never_the_cpu(tmp_path: Path) -> None:
    hardware = seen(make(tmp_path / "r", pci("0000:19:00.0", 0x1DA3, 0x1020, 0x120000, "habanalabs")))
    assert hardware.accelerators == ()
    with pytest.raises(HardwareError, match="Gaudi") as caught:
        choose_lane(hardware)
    assert "--hw cpu" in caught.value.remedy and choose_lane(hardware, "cpu") == "cpu"


def test_variables_of_this_machine_do_not_restrict_a_record() -> None:
    hardware = recorded("h100x8-driver580")
    assert restrict(hardware, {"CUDA_VISIBLE_DEVICES": "0"}) == (hardware, ())
