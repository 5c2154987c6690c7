"""The choice of a stack, as a table of (machine, stack, verdict) over the shipped matrix, and over small matrices of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fl.errors import StackError
from fl.hardware import Accelerator, Hardware, LaneName
from fl.matrix import Matrix, load
from fl.select import Choice, Needs, choose, runs_on, translated, verdicts

MATRIX = load()


@dataclass(frozen=True)
class Machine:
    """A host in one line: lane, chip of each device, driver, processor."""

    lane: LaneName
    chips: tuple[str | None, ...] = ()
    driver: str | None = None
    arch: str = "x86_64"

    @property
    def hardware(self) -> Hardware:
        names = {"cuda": "nvidia", "rocm": "amdgpu", "ascend": "ascend", "xpu": "xe", "cpu": "none"}
        drivers = {} if self.driver is None else {names[self.lane]: {"version": self.driver}}
        devices = tuple(Accelerator(lane=self.lane, index=n, name=f"Card {n}", arch=chip) for n, chip in enumerate(self.chips))
        return Hardware(os="linux", arch=self.arch, accelerators=devices, drivers=drivers)

    def needs(self, **more: Any) -> Needs:
        return Needs(platform=self.hardware.platform, **more)

    def choose(self, **more: Any) -> Choice:
        stack_id, force, matrix = more.pop("stack_id", None), more.pop("force", False), more.pop("matrix", MATRIX)
        hardware = self.hardware
        return choose(matrix, hardware, hardware.accelerators, self.lane, self.needs(**more), stack_id=stack_id, force=force)


MACHINES: dict[str, Machine] = {
    "H100, new driver": Machine("cuda", ("sm_90",) * 8, "580.159.04"),
    "H100, the floor itself": Machine("cuda", ("sm_90",), "580.65.06"),
    "H100, one below the floor": Machine("cuda", ("sm_90",), "580.65.05"),
    "H100, CUDA 12 driver": Machine("cuda", ("sm_90",), "535.54.03"),
    "H100, floor of CUDA 12": Machine("cuda", ("sm_90",), "525.60.13"),
    "H100, CUDA 11 driver": Machine("cuda", ("sm_90",), "515.65.01"),
    "H100, three-digit driver of 2026": Machine("cuda", ("sm_90",), "610.43.02"),
    "H100, driver unknown": Machine("cuda", ("sm_90",)),
    "H100, driver unreadable": Machine("cuda", ("sm_90",), "GRID 580"),
    "GH200": Machine("cuda", ("sm_90",), "580.95.05", "aarch64"),
    "DGX Spark": Machine("cuda", ("sm_121",), "580.95.05", "aarch64"),
    "Thor": Machine("cuda", ("sm_110",), "580.95.05", "aarch64"),
    "arm server with T4": Machine("cuda", ("sm_75",), "580.95.05", "aarch64"),
    "T4": Machine("cuda", ("sm_75",), "580.95.05"),
    "A100 and V100": Machine("cuda", ("sm_80", "sm_70"), "580.95.05"),
    "V100": Machine("cuda", ("sm_70",), "550.54.15"),
    "P100": Machine("cuda", ("sm_60",), "580.95.05"),
    "K80": Machine("cuda", ("sm_37",), "580.95.05"),
    "L40S": Machine("cuda", ("sm_89",), "570.124.06"),
    "B300": Machine("cuda", ("sm_103",), "590.48.01"),
    "B300, CUDA 12 driver": Machine("cuda", ("sm_103",), "575.57.08"),
    "RTX 5090": Machine("cuda", ("sm_120",), "575.57.08"),
    "B200, driver before Blackwell": Machine("cuda", ("sm_100",), "550.54.15"),
    "RTX PRO 6000, 570": Machine("cuda", ("sm_120",), "570.124.06"),
    "GB10, CUDA 12 driver": Machine("cuda", ("sm_121",), "575.57.08", "aarch64"),
    "Orin": Machine("cuda", ("sm_87",), "540.4.0", "aarch64"),
    "two chips that fit": Machine("cuda", ("sm_80", "sm_90"), "580.95.05"),
    "three chips, one old": Machine("cuda", ("sm_90", "sm_37", "sm_90"), "580.95.05"),
    "a chip of tomorrow": Machine("cuda", ("sm_130",), "615.10.01"),
    "chip unknown": Machine("cuda", (None,), "580.95.05"),
    "MI300X": Machine("rocm", ("gfx942",) * 8, "6.19.14"),
    "MI300X, in-tree driver": Machine("rocm", ("gfx942",)),
    "MI100": Machine("rocm", ("gfx908",), "6.2.4"),
    "RX 7600": Machine("rocm", ("gfx1102",)),
    "Vega 10": Machine("rocm", ("gfx900",)),
    "910B": Machine("ascend", ("ascend910b",) * 8, "25.5.2", "aarch64"),
    "910B on x86": Machine("ascend", ("ascend910b",), "25.2.0"),
    "910B, HDK 26.1": Machine("ascend", ("ascend910b",), "26.1.0", "aarch64"),
    "910B, HDK 26.2": Machine("ascend", ("ascend910b",), "26.2.0", "aarch64"),
    "910 of the first generation": Machine("ascend", ("ascend910",), "25.5.0", "aarch64"),
    "310P": Machine("ascend", ("ascend310p",), "25.5.0", "aarch64"),
    "MI355X": Machine("rocm", ("gfx950",) * 8, "6.19.14"),
    "Strix Halo": Machine("rocm", ("gfx1151",)),
    "MI300X, driver of ROCm 5": Machine("rocm", ("gfx942",), "5.18.13"),
    "MI300X, driver 30.10": Machine("rocm", ("gfx942",), "6.14.14"),
    "MI300X, driver 30.30": Machine("rocm", ("gfx942",), "6.16.13"),
    "MI300X, driver of ROCm 6.2": Machine("rocm", ("gfx942",), "6.8.5"),
    "910B, HDK 24.1": Machine("ascend", ("ascend910b",), "24.1.rc3.7", "aarch64"),
    "910B, HDK 24.1.RC1": Machine("ascend", ("ascend910b",), "24.1.RC1", "aarch64"),
    "910B, HDK 25.2 candidate": Machine("ascend", ("ascend910b",), "25.2.rc1", "aarch64"),
    "910B, HDK 23": Machine("ascend", ("ascend910b",), "23.0.5", "aarch64"),
    "A3": Machine("ascend", ("ascend910_93",), "25.5.0", "aarch64"),
    "910B, HDK 25.0": Machine("ascend", ("ascend910b",), "25.0.1", "aarch64"),
    "Atlas 350": Machine("ascend", ("ascend950",), "26.0.0", "aarch64"),
    "Atlas 350, HDK 24.1": Machine("ascend", ("ascend950",), "24.1.0", "aarch64"),
    "Max 1550": Machine("xpu", ("xe-hpc",)),
    "Arc B": Machine("xpu", ("xe2-hpg",)),
    "Intel GPU unknown": Machine("xpu", (None,)),
    "laptop": Machine("cpu"),
    "Kunpeng": Machine("cpu", arch="aarch64"),
}

FITS = "fits"
PAIRS: list[tuple[str, str, str]] = [
    ("H100, new driver", "cuda130-torch214", FITS),
    ("H100, new driver", "cuda128-torch210", FITS),
    ("H100, new driver", "cpu-torch213", "is for the cpu lane"),
    ("H100, new driver", "rocm72-torch210", "is for the rocm lane"),
    ("H100, new driver", "cann91-torch210", "is for the ascend lane"),
    ("H100, the floor itself", "cuda130-torch214", FITS),
    ("H100, one below the floor", "cuda130-torch214", "needs NVIDIA driver >= 580.65.06, this machine has 580.65.05"),
    ("H100, one below the floor", "cuda128-torch210", FITS),
    ("H100, CUDA 12 driver", "cuda130-torch214", "needs NVIDIA driver >= 580.65.06, this machine has 535.54.03"),
    ("H100, CUDA 12 driver", "cuda128-torch210", FITS),
    ("H100, floor of CUDA 12", "cuda128-torch210", FITS),
    ("H100, CUDA 11 driver", "cuda128-torch210", "needs NVIDIA driver >= 525.60.13, this machine has 515.65.01"),
    ("H100, CUDA 11 driver", "cuda130-torch214", "needs NVIDIA driver >= 580.65.06, this machine has 515.65.01"),
    ("H100, three-digit driver of 2026", "cuda130-torch214", FITS),
    ("H100, driver unknown", "cuda130-torch214", FITS),
    ("H100, driver unknown", "cuda128-torch210", FITS),
    ("H100, driver unreadable", "cuda130-torch214", FITS),
    ("GH200", "cuda130-torch214", FITS),
    ("GH200", "cuda128-torch210", "is for linux/amd64, this machine is linux/arm64"),
    ("DGX Spark", "cuda130-torch214", FITS),
    ("Thor", "cuda130-torch214", FITS),
    ("arm server with T4", "cuda130-torch214", "has no code for sm_75"),
    ("T4", "cuda130-torch214", FITS),
    ("A100 and V100", "cuda130-torch214", "has no code for sm_70 (Card 1)"),
    ("A100 and V100", "cuda128-torch210", FITS),
    ("V100", "cuda130-torch214", "has no code for sm_70"),
    ("V100", "cuda128-torch210", FITS),
    ("P100", "cuda130-torch214", "has no code for sm_60"),
    ("P100", "cuda128-torch210", "has no code for sm_60"),
    ("L40S", "cuda130-torch214", "this machine has 570.124.06"),
    ("L40S", "cuda128-torch210", FITS),
    ("B300", "cuda130-torch214", FITS),
    ("B300", "cuda128-torch210", FITS),
    ("RTX 5090", "cuda130-torch214", "this machine has 575.57.08"),
    ("RTX 5090", "cuda128-torch210", FITS),
    ("B200, driver before Blackwell", "cuda130-torch214", "this machine has 550.54.15"),
    ("B200, driver before Blackwell", "cuda128-torch210", "sm_100 needs NVIDIA driver >= 570, the first that knows it"),
    ("RTX PRO 6000, 570", "cuda128-torch210", FITS),
    ("RTX PRO 6000, 570", "cuda130-torch214", "this machine has 570.124.06"),
    ("GB10, CUDA 12 driver", "cuda130-torch214", "this machine has 575.57.08"),
    ("GB10, CUDA 12 driver", "cuda128-torch210", "is for linux/amd64"),
    ("Orin", "cuda130-torch214", "this machine has 540.4.0"),
    ("Orin", "cuda128-torch210", "is for linux/amd64"),
    ("two chips that fit", "cuda130-torch214", FITS),
    ("three chips, one old", "cuda130-torch214", "has no code for sm_37 (Card 1)"),
    ("three chips, one old", "cuda128-torch210", "has no code for sm_37 (Card 1)"),
    ("a chip of tomorrow", "cuda130-torch214", "has no code for sm_130"),
    ("chip unknown", "cuda130-torch214", FITS),
    ("chip unknown", "cuda128-torch210", FITS),
    ("MI300X", "rocm72-torch210", FITS),
    ("MI300X", "rocm72-torch214", FITS),
    ("MI300X", "cuda130-torch214", "is for the cuda lane"),
    ("MI300X, in-tree driver", "rocm72-torch210", FITS),
    ("MI100", "rocm72-torch210", "has no code for gfx908"),
    ("MI100", "rocm72-torch214", FITS),
    ("RX 7600", "rocm72-torch210", "has no code for gfx1102"),
    ("RX 7600", "rocm72-torch214", FITS),
    ("Vega 10", "rocm72-torch210", "has no code for gfx900"),
    ("Vega 10", "rocm72-torch214", "has no code for gfx900"),
    ("910B", "cann91-torch210", FITS),
    ("910B", "cann82-torch26", FITS),
    ("910B, HDK 26.1", "cann91-torch210", FITS),
    ("910B, HDK 26.2", "cann91-torch210", FITS),
    ("910B, HDK 26.1", "cann82-torch26", FITS),
    ("910 of the first generation", "cann91-torch210", "has no code for ascend910"),
    ("310P", "cann91-torch210", "has no code for ascend310p"),
    ("MI355X", "rocm72-torch210", FITS),
    ("Strix Halo", "rocm72-torch210", "has no code for gfx1151"),
    ("Strix Halo", "rocm72-torch214", FITS),
    ("MI300X, driver of ROCm 5", "rocm72-torch210", FITS),
    ("MI300X, driver 30.10", "rocm72-torch210", FITS),
    ("MI300X, driver 30.30", "rocm72-torch210", FITS),
    ("MI300X, driver of ROCm 6.2", "rocm72-torch214", FITS),
    ("Intel GPU unknown", "xpu-torch212", FITS),
    ("910B on x86", "cann91-torch210", FITS),
    ("910B, HDK 24.1", "cann91-torch210", "needs Ascend driver (HDK) >= 25.2, this machine has 24.1.rc3.7"),
    ("910B, HDK 24.1", "cann82-torch26", FITS),
    ("910B, HDK 24.1.RC1", "cann82-torch26", "needs Ascend driver (HDK) >= 24.1.rc2, this machine has 24.1.RC1"),
    ("910B, HDK 25.2 candidate", "cann91-torch210", "this machine has 25.2.rc1"),
    ("910B, HDK 25.2 candidate", "cann82-torch26", FITS),
    ("910B, HDK 23", "cann91-torch210", "this machine has 23.0.5"),
    ("910B, HDK 23", "cann82-torch26", "this machine has 23.0.5"),
    ("A3", "cann91-torch210", "has no code for ascend910_93"),
    ("A3", "cann82-torch26", "only for ascend910b"),
    ("Max 1550", "xpu-torch212", FITS),
    ("Max 1550", "cpu-torch213", "is for the cpu lane"),
    ("Arc B", "xpu-torch212", FITS),
    ("laptop", "cpu-torch213", FITS),
    ("laptop", "xpu-torch212", "is for the xpu lane"),
    ("Kunpeng", "cpu-torch213", "is for linux/amd64, this machine is linux/arm64"),
]


@pytest.mark.parametrize(("machine", "stack", "expected"), PAIRS, ids=[f"{m}: {s}" for m, s, _ in PAIRS])
def test_verdict(machine: str, stack: str, expected: str) -> None:
    one = MACHINES[machine]
    found = verdicts(MATRIX, one.hardware, one.hardware.accelerators, one.lane, one.needs())
    assert [v.stack.id for v in found] == [s.id for s in MATRIX.stacks]
    verdict = next(v for v in found if v.stack.id == stack)
    assert verdict.fits == (expected == FITS), verdict.why
    if expected != FITS:
        assert expected in "; ".join(verdict.why)


CHOSEN: list[tuple[str, str | None]] = [
    ("H100, new driver", "cuda130-torch214"), ("H100, CUDA 12 driver", "cuda128-torch210"), ("H100, CUDA 11 driver", None),
    ("H100, driver unknown", "cuda130-torch214"), ("V100", "cuda128-torch210"), ("P100", "cuda126-torch27"), ("K80", None),
    ("GH200", "cuda130-torch214"),
    ("arm server with T4", None), ("A100 and V100", "cuda128-torch210"), ("MI300X", "rocm72-torch210"), ("MI100", "rocm72-torch214"),
    ("910B", "cann91-torch210"), ("910B, HDK 24.1", "cann82-torch26"), ("910B, HDK 25.0", "cann85-torch29"),
    ("A3", "cann91-torch210-a3"), ("Atlas 350", "cann90-torch210-950"), ("Atlas 350, HDK 24.1", "cann92-torch214-950"),
    ("Max 1550", "xpu-torch212"), ("laptop", "cpu-torch213"), ("Kunpeng", "cpu-torch210"),
]


def test_a_driver_that_no_document_names_is_a_warning() -> None:
    choice = MACHINES["Atlas 350"].choose(stack_id="cann92-torch214-950")
    assert "which Ascend driver (HDK) cann 9.2 needs is in no document that was seen" in choice.warnings
    assert not any("in no document" in one for one in MACHINES["Atlas 350"].choose().warnings)


@pytest.mark.parametrize(("machine", "stack"), CHOSEN, ids=[m for m, _ in CHOSEN])
def test_choice(machine: str, stack: str | None) -> None:
    if stack is None:
        with pytest.raises(StackError, match="no stack fits this machine"):
            MACHINES[machine].choose()
    else:
        choice = MACHINES[machine].choose()
        assert choice.stack.id == stack
        assert [v.stack.id for v in choice.verdicts if v.chosen] == [stack]


@pytest.mark.parametrize(
    ("machine", "warning"),
    [
        ("H100, driver unknown", "needs NVIDIA driver >= 580.65.06, this machine's version is not known"),
        ("H100, driver unreadable", "'GRID 580' cannot be compared"),
        ("chip unknown", "the chip of Card 0 is not known"),
        ("Intel GPU unknown", "the chip of Card 0 is not known"),
        ("H100, CUDA 12 driver", "PTX that the driver must translate needs 570.26"),
        ("B300, CUDA 12 driver", "compilers of cuda 12.8 do not know sm_103 (12.9 is the first)"),
        ("MI300X, driver 30.10", "AMD GPU driver 30.10 is documented with 6.2 to 7.0, not with rocm 7.2.4 (its module is 6.14.14)"),
        ("MI300X, driver of ROCm 6.2", "AMD GPU driver 6.2 is documented with 6.0 to 7.0, not with rocm 7.2.4"),
        ("910B, HDK 26.2", "cann 9.1.0 is documented with Ascend driver (HDK) up to 26.1.0, this machine has 26.2.0"),
    ],
)
def test_what_the_data_cannot_tell_is_a_warning(machine: str, warning: str) -> None:
    choice = MACHINES[machine].choose()
    assert warning in "; ".join(choice.warnings)


@pytest.mark.parametrize(
    "machine", ["H100, new driver", "L40S", "910B", "910B, HDK 26.1", "MI300X", "MI300X, driver of ROCm 5", "MI300X, driver 30.30", "T4"]
)
def test_what_is_inside_its_windows_gets_no_warning(machine: str) -> None:
    assert MACHINES[machine].choose().warnings == ()


def test_older_cann_with_a_newer_hdk_is_allowed_and_said() -> None:
    assert "up to 25.2.0, this machine has 26.1.0" in MACHINES["910B, HDK 26.1"].choose(stack_id="cann82-torch26").warnings[0]
    assert MACHINES["910B on x86"].choose(stack_id="cann82-torch26").warnings == ()


def test_mixed_chips_are_named_with_the_devices_that_fit() -> None:
    with pytest.raises(StackError) as raised:
        MACHINES["three chips, one old"].choose()
    assert "--devices 0,2, for which cuda130-torch214 has code" in raised.value.remedy.splitlines()
    with pytest.raises(StackError) as raised:
        MACHINES["K80"].choose()
    assert "--devices" not in raised.value.remedy


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA A100-SXM4-40GB", True),
        ("Tesla T4", True),
        ("NVIDIA GeForce RTX 4090", False),
        ("NVIDIA RTX A2000", False),
        (None, False),
    ],
)
def test_forward_compatibility_is_named_where_it_is_allowed(name: str | None, allowed: bool) -> None:
    hardware = Hardware(
        os="linux",
        arch="x86_64",
        accelerators=(Accelerator(lane="cuda", index=0, name=name, arch="sm_80"),),
        drivers={"nvidia": {"version": "470.57.02"}},
    )
    with pytest.raises(StackError) as raised:
        choose(MATRIX, hardware, hardware.accelerators, "cuda", Needs(platform="linux/amd64"))
    assert ("cuda-compat-12-4 (allowed on data-center GPUs): --stack cuda124-torch26 " in raised.value.remedy) is allowed
    assert "upgrade the NVIDIA driver to 525.60.13 or newer" in raised.value.remedy


def test_an_unknown_platform_never_refuses() -> None:
    hardware = MACHINES["laptop"].hardware
    choice = choose(MATRIX, hardware, (), "cpu", Needs(platform="linux/unknown"))
    assert choice.stack.id == "cpu-torch213"
    assert "platform is not known" in choice.warnings[0]


def test_every_failing_check_is_told_with_what_to_do() -> None:
    with pytest.raises(StackError) as raised:
        Machine("cuda", ("sm_60",), "418.43", "aarch64").choose(pythons=frozenset({"3.12"}), features=frozenset({"flash_attention"}))
    message = raised.value.message
    for stack in ("cuda130-torch214", "cuda128-torch210"):
        line = next(line for line in message.splitlines() if line.strip().startswith(stack))
        for part in ("has no code for sm_60", "this machine has 418.43", "needs Python", "at hand: 3.12", "cannot do flash_attention"):
            assert part in line
    assert "is for linux/amd64, this machine is linux/arm64" in message
    assert "cpu-torch213" not in message
    assert "--hw cpu" in raised.value.remedy
    assert "upgrade" not in raised.value.remedy, "a newer driver alone would not help"
    assert raised.value.exit_code == 4


def test_a_driver_that_alone_is_too_old_is_to_be_upgraded_to_the_oldest_that_works() -> None:
    with pytest.raises(StackError) as raised:
        MACHINES["H100, CUDA 11 driver"].choose()
    assert "upgrade the NVIDIA driver to 525.60.13 or newer" in raised.value.remedy.splitlines()
    with pytest.raises(StackError) as raised:
        MACHINES["910B, HDK 23"].choose()
    assert "upgrade the Ascend driver (HDK) to 24.1.rc2 or newer" in raised.value.remedy.splitlines()


def test_the_processor_is_not_offered_where_it_is_what_failed() -> None:
    with pytest.raises(StackError) as raised:
        Machine("cpu", arch="riscv64").choose()
    assert "--hw cpu" not in raised.value.remedy


def test_model_type_against_the_rows_transformers() -> None:
    machine = MACHINES["laptop"]
    assert machine.choose(model_type="qwen3").stack.id == "cpu-torch213"
    old = _matrix(_row("cpu-torch213"), layer={"transformers": "4.50.3"})
    with pytest.raises(StackError, match=r"the model type qwen3 needs transformers >= 4\.51\.0, this row has 4\.50\.3"):
        machine.choose(model_type="qwen3", matrix=old)
    assert "does not know the model type kwen3" in machine.choose(model_type="kwen3").warnings[0]
    assert "only with the model's own code" in machine.choose(model_type="chatglm").warnings[0]


def test_serving_looks_at_vllm_and_needs_a_serve_flavor() -> None:
    machine = MACHINES["H100, new driver"]
    assert machine.choose(flavor="serve", model_type="qwen3").stack.id == "cuda130-torch214"
    choice = machine.choose(flavor="serve", model_type="mllama")
    assert choice.stack.id == "cuda126-torch27", "the newest row whose vLLM still has it"
    why = {verdict.stack.id: verdict.why for verdict in choice.verdicts}
    assert any("mllama needs vllm <= 0.10.2, this row has 0.33.0" in one for one in why["cuda130-torch214"])
    with pytest.raises(StackError, match=r"glm5_next needs vllm >= 0\.30\.0, this row has 0\.19\.1"):
        machine.choose(flavor="serve", model_type="glm5_next", stack_id="cuda128-torch210")
    with pytest.raises(StackError, match="has no serve flavor"):
        MACHINES["laptop"].choose(flavor="serve")


def test_an_engine_whose_models_nobody_has_checked_is_only_warned_of() -> None:
    machine = MACHINES["910B"]
    choice = machine.choose(flavor="serve", model_type="qwen3")
    assert choice.stack.id == "cann91-torch210"
    assert "nobody has checked which models vllm-ascend 0.23.0 serves, so neither for qwen3" in choice.warnings
    gpu = MACHINES["H100, new driver"]
    choice = gpu.choose(flavor="serve", model_type="qwen3", stack_id="cuda130-torch211")
    assert "nobody has checked which models sglang 0.5.17 serves, so neither for qwen3" in choice.warnings
    verdicts = {verdict.stack.id: verdict for verdict in gpu.choose(flavor="serve", model_type="mllama").verdicts}
    assert verdicts["cuda126-torch27"].chosen
    assert verdicts["cuda130-torch211"].fits
    assert verdicts["cuda130-torch211"].why == ("fits, but of cuda126-torch27 it is known which models it serves",)
    with pytest.raises(StackError, match=r"takes torch from the image quay\.io/ascend/vllm-ascend:v0\.23\.0"):
        machine.choose(flavor="serve", stack_id="cann91-torch210", engine="host")


def test_features() -> None:
    assert MACHINES["910B"].choose(features=frozenset({"deepspeed"})).stack.id == "cann91-torch210"
    with pytest.raises(StackError, match=r"cannot do bnb_4bit \(file list of the bitsandbytes"):
        MACHINES["910B"].choose(features=frozenset({"bnb_4bit"}))
    choice = MACHINES["910B"].choose(features=frozenset({"fsdp2"}))
    assert "nobody has checked whether cann91-torch210 can do fsdp2" in choice.warnings


def test_python_and_the_vendors_torch_count_for_the_host_engine() -> None:
    machine = MACHINES["H100, new driver"]
    assert machine.choose(engine="host", pythons=frozenset({"3.11", "3.12"})).stack.id == "cuda128-torch210"
    with pytest.raises(StackError, match=r"needs Python 3\.13, at hand: none"):
        machine.choose(engine="host", pythons=frozenset(), stack_id="cuda130-torch214")
    amd = MACHINES["MI300X"]
    host = {"engine": "host", "pythons": frozenset({"3.12"})}
    assert amd.choose(**host).stack.id == "rocm72-torch214"
    assert amd.choose(**host, own_interpreter=True).stack.id == "rocm72-torch210"
    with pytest.raises(StackError, match="takes torch from the image rocm/pytorch"):
        amd.choose(**host, stack_id="rocm72-torch210")


def test_a_named_stack() -> None:
    machine = MACHINES["H100, new driver"]
    choice = machine.choose(stack_id="cuda128-torch210")
    assert choice.stack.id == "cuda128-torch210"
    assert [v.stack.id for v in choice.verdicts if v.chosen] == ["cuda128-torch210"]
    assert {v.stack.id for v in choice.verdicts if v.of_lane} == {s.id for s in MATRIX.stacks if s.lane == "cuda"}
    with pytest.raises(StackError, match=r"no stack is called 'cuda13-torch214'\. Did you mean cuda130-torch214\?"):
        machine.choose(stack_id="cuda13-torch214")
    with pytest.raises(StackError, match="rocm72-torch210 is for the rocm lane, this run is for cuda"):
        machine.choose(stack_id="rocm72-torch210")


def test_a_named_stack_that_does_not_fit_is_refused_or_forced() -> None:
    machine = MACHINES["H100, CUDA 12 driver"]
    with pytest.raises(StackError) as raised:
        machine.choose(stack_id="cuda130-torch214")
    assert "needs NVIDIA driver >= 580.65.06, this machine has 535.54.03" in raised.value.message
    assert "upgrade the NVIDIA driver to 580.65.06 or newer" in raised.value.remedy
    assert "--force" in raised.value.remedy
    forced = machine.choose(stack_id="cuda130-torch214", force=True)
    assert forced.stack.id == "cuda130-torch214"
    assert forced.warnings == ("forced: needs NVIDIA driver >= 580.65.06, this machine has 535.54.03",)


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        (["cuda130-torch214 edge", "cuda126-torch214 stable"], "cuda126-torch214"),
        (["cuda130-torch214 edge", "cuda126-torch214 lts"], "cuda126-torch214"),
        (["cuda126-torch214 lts", "cuda128-torch210 stable"], "cuda128-torch210"),
        (["cuda126-torch214 edge", "cuda130-torch213 edge"], "cuda130-torch213"),
        (["cuda130-torch213 edge", "cuda130-torch214 edge"], "cuda130-torch214"),
        (["cuda130-torch29 edge", "cuda130-torch210 edge"], "cuda130-torch210"),
        (["cuda130-torch214 retired", "cuda126-torch26 edge"], "cuda126-torch26"),
    ],
)
def test_order(rows: list[str], chosen: str) -> None:
    for order in (rows, rows[::-1]):
        matrix = _matrix(*(_row(*text.split()) for text in order))
        assert MACHINES["H100, new driver"].choose(matrix=matrix).stack.id == chosen


def test_a_retired_row_is_taken_only_by_force() -> None:
    matrix = _matrix(_row("cuda130-torch214", "retired"))
    with pytest.raises(StackError, match="is retired"):
        MACHINES["H100, new driver"].choose(matrix=matrix)
    with pytest.raises(StackError, match="is retired"):
        MACHINES["H100, new driver"].choose(matrix=matrix, stack_id="cuda130-torch214")
    assert MACHINES["H100, new driver"].choose(matrix=matrix, stack_id="cuda130-torch214", force=True)


def test_a_lane_without_rows() -> None:
    with pytest.raises(StackError, match="the matrix has no row for the xpu lane"):
        MACHINES["Max 1550"].choose(matrix=_matrix(_row("cpu-torch213")))


@pytest.mark.parametrize(
    ("chip", "arches", "expected"),
    [
        ("sm_89", ["sm_80", "sm_90"], True), ("sm_86", ["sm_80"], True), ("sm_80", ["sm_86"], False), ("sm_90", ["sm_80"], False),
        ("sm_121", ["sm_120"], True), ("sm_103", ["sm_100"], True), ("sm_110", ["sm_100"], False), ("sm_120", ["sm_12"], False),
        ("gfx942", ["gfx942"], True), ("gfx942", ["gfx940"], False), ("ascend910b", ["ascend910"], False), ("xe-hpc", ["xe-hpg"], False),
    ],
)
def test_runs_on(chip: str, arches: list[str], expected: bool) -> None:
    assert runs_on(chip, arches) is expected


def _row(name: str, status: str = "stable") -> dict[str, Any]:
    """A row made from an id such as cuda130-torch214."""
    runtime, torch = name.split("-torch")
    row: dict[str, Any] = {
        "id": name, "lane": "cpu", "status": status, "python": "3.11", "base": {"image": "debian:bookworm-slim"}, "layer": "current",
        "confidence": "unknown", "hosts": {"platforms": ["linux/amd64"]}, "train": {"torch": f"{torch[0]}.{torch[1:]}.0"},
    }
    if runtime != "cpu":
        row |= {"lane": "cuda", "runtime": {"cuda": f"{runtime[4:6]}.{runtime[6:]}"}}
        row["hosts"] |= {"arches": ["sm_90"]}
    return row


def _matrix(*rows: dict[str, Any], layer: dict[str, str] | None = None) -> Matrix:
    models = {"Qwen3": {"sizes": "0.6B", "types": {"qwen3": {"transformers": "4.51.0"}}}}
    layers = {"current": layer or {"transformers": "5.24.0"}}
    return Matrix.model_validate({"schema": 1, "layers": layers, "stacks": rows, "models": models})


@pytest.mark.parametrize(
    ("chip", "ptx", "expected"),
    [
        ("sm_130", ["sm_120"], "sm_120"),
        ("sm_121", ["sm_90", "sm_120"], "sm_120"),
        ("sm_103", ["sm_90", "sm_120"], "sm_90"),
        ("sm_90", ["sm_120"], None),
        ("sm_130", [], None),
        ("gfx942", ["sm_120"], None),
    ],
)
def test_ptx_goes_forward_only(chip: str, ptx: list[str], expected: str | None) -> None:
    assert translated(chip, ptx) == expected


def test_a_later_chip_fits_a_row_with_ptx_and_no_other() -> None:
    """torch 2.13.0 is the release whose wheels hold PTX; a chip of tomorrow fits it with a warning."""
    later = Accelerator(lane="cuda", index=0, name="NVIDIA Tomorrow", arch="sm_130", usable=True)
    hardware = Machine("cuda", ("sm_130",), "610.10").hardware
    found = {v.stack.id: v for v in verdicts(load(), hardware, (later,), "cuda", Needs(platform="linux/amd64"))}
    rollout = found["cuda130-torch213-rollout"]
    assert any("PTX for sm_120" in text for text in rollout.warnings)
    assert any("has no code for sm_130" in text for text in found["cuda130-torch214"].why) and not found["cuda130-torch214"].fits
