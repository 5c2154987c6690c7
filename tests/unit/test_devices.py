"""Which lane and which devices a run gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hosts import make, pci, recorded, seen

from fl.devices import choose_devices, choose_lane, restrict
from fl.errors import HardwareError
from fl.hardware import Accelerator, Hardware, Partition


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


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2,5", [2, 5]), ("GPU-00000003,GPU-00000001", [0, 2]), ("", []), ("-1", []), ("GPU-ffff", list(range(8))), ("0:1", list(range(8)))],
)
def test_the_callers_own_variables_restrict(value: str, expected: list[int]) -> None:
    live = replace(recorded("h100x8-driver580"), replayed=False)
    hardware, notes = restrict(live, {"CUDA_VISIBLE_DEVICES": value, "ROCR_VISIBLE_DEVICES": "0"})
    assert [a.index for a in hardware.accelerators] == expected and len(notes) == 1 and "CUDA_VISIBLE_DEVICES" in notes[0]


def test_variables_of_this_machine_do_not_restrict_a_record() -> None:
    hardware = recorded("h100x8-driver580")
    assert restrict(hardware, {"CUDA_VISIBLE_DEVICES": "0"}) == (hardware, ())
