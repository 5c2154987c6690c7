"""The argv of apptainer: what its own flag parser makes of every path and value, and what isolates."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hosts import recorded
from hypothesis import given
from hypothesis import strategies as st

from fl import apptainer_argv, plan
from fl.engines import processes
from fl.grants import EngineFacts, Grants, Mount
from fl.hardware import Accelerator
from fl.lanes import LANES

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


def parsed(said: str) -> dict[str, str]:
    """What a `--env` flag sets: with one `=` the text without outer quotes, else a CSV record of variables."""
    fields = [said.strip('"')] if said.count("=") == 1 else next(csv.reader(io.StringIO(said, newline="")))
    return dict(field.split("=", 1) for field in fields)


@given(name=st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True), value=TEXT)
def test_any_value_reaches_the_container_as_it_is(name: str, value: str) -> None:
    assert parsed(apptainer_argv.variable(name, value)) == {name: value}


@given(path=TEXT)
def test_any_path_can_be_mounted(path: str) -> None:
    said = apptainer_argv.mount_option(Mount(source=f"/{path}", target=f"/{path}"))
    assert next(csv.reader(io.StringIO(said, newline=""))) == ["type=bind", f"source=/{path}", f"destination=/{path}", "ro"]


def request(lane: str, record: str, indices: list[int], **more: object) -> plan.Request:
    hardware = recorded(record)
    module = next(module for name, module in LANES.items() if name == lane)
    engine = EngineFacts(name="apptainer", nvidia_gpus=False)
    chosen = tuple(a for a in hardware.of_lane(module_lane(lane)) if a.index in indices)
    values: dict[str, object] = {
        "run": "r-1", "lane": lane, "stack": "s", "image": plan.Image(reference="fl-train:s", file="/c/fl.sif"), "hardware": hardware,
        "chosen": chosen, "grants": module.grants(chosen, hardware, engine), "visibility": {}, "engine": engine,
        "caller": plan.Caller(uid=1000, gid=100, name="zoe"), "python": "/opt/venv/bin/python", "folder": "/state/r-1", "cache": "/cache/c",
        "code": "/cache/code", "inputs": (Mount(source="/data/a,b", target="/data/a,b"),), "outputs": ("/out",),
        "working_directory": "/state/r-1", **more,
    }  # fmt: skip
    return plan.Request(**values)  # type: ignore[arg-type]


def module_lane(lane: str) -> object:
    return next(name for name in LANES if name == lane)


def flags(argv: tuple[str, ...], name: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == name]


def test_nodes_are_bound_one_by_one() -> None:
    made = plan.make(request("rocm", "mi300x8-spx", [2]))
    binds = flags(made.argv, "--mount")
    assert binds[:2] == [f"type=bind,source={n},destination={n}" for n in ("/dev/kfd", "/dev/dri/renderD144")]
    assert not any("/dev/" in bind for bind in binds[2:])
    assert "--rocm" not in made.argv and made.options["isolated"] is True and "--containall" in made.argv


def test_a_virtual_card_is_refused_since_apptainer_skips_a_node_with_another_name() -> None:
    cards = (Accelerator(lane="ascend", index=100, nodes=("/dev/vdavinci100",), usable=True),)
    grants = LANES["ascend"].grants(cards, recorded("ascend-a2x8-one-busy"), EngineFacts(name="apptainer", nvidia_gpus=False))
    assert not any(":" in node for node in grants.devices)
    assert any(p.severity == "error" and "/dev/vdavinci100" in p.message and "docker" in p.remedy for p in grants.problems)


def test_nvidia_goes_through_nv_and_the_plan_says_that_it_does_not_isolate() -> None:
    made = plan.make(request("cuda", "h100x8-driver580", [2]))
    assert "--nv" in made.argv and made.options["isolated"] is False
    assert any("every GPU" in text for text in made.warnings)
    assert any(text.startswith("CUDA_VISIBLE_DEVICES=GPU-00000003") for text in flags(made.argv, "--env"))


def test_nvidia_by_cdi_isolates() -> None:
    grants = Grants(cdi=("nvidia.com/gpu=2",))
    made = plan.make(request("cuda", "h100x8-driver580", [2], grants=grants))
    assert flags(made.argv, "--device") == ["nvidia.com/gpu=2"] and made.options["isolated"] is True and "--nv" not in made.argv


def test_the_program_and_its_surroundings() -> None:
    made = plan.make(request("cpu", "cpu-only", []))
    argv = made.argv
    assert argv[:2] == ("apptainer", "exec") and argv[-5:] == (
        "/c/fl.sif",
        "/opt/venv/bin/python",
        "-m",
        "fl_trainers",
        "/state/r-1/config.json",
    )
    assert flags(argv, "--pwd") == ["/state/r-1"] and flags(argv, "--home") == ["/cache/c/home"]
    assert flags(argv, "--workdir") == ["/state/r-1/apptainer"]
    assert 'type=bind,"source=/data/a,b","destination=/data/a,b",ro' in flags(argv, "--mount")
    assert "type=bind,source=/out,destination=/out" in flags(argv, "--mount")
    assert not any(text.startswith("HOME=") for text in flags(argv, "--env")), "apptainer refuses HOME there"
    assert f"{processes.MARK}=r-1" in flags(argv, "--env")


@pytest.mark.parametrize(("network", "words", "told"), [("none", 1, "none"), ("bridge", 0, "host"), ("host", 0, "host")])
def test_network(network: str, words: int, told: str) -> None:
    made = plan.make(request("cpu", "cpu-only", [], network=network))
    assert made.argv.count("--net") == words and made.options["network"] == told


def test_a_secret_is_in_a_file_only() -> None:
    made = plan.make(request("cpu", "cpu-only", [], secrets={"HF_TOKEN": "caller"}, network="bridge"))
    assert "FL_SECRETS=/state/r-1/secrets.json" in made.argv and not any("HF_TOKEN" in word for word in made.argv)


def test_a_path_of_the_images_own_is_refused() -> None:
    from fl.errors import RecipeError

    with pytest.raises(RecipeError, match="/usr/lib"):
        plan.make(request("cpu", "cpu-only", [], inputs=(Mount(source="/usr/lib", target="/usr/lib"),)))


def test_the_caller_owns_what_is_made(tmp_path: Path) -> None:
    """No user is named: the processes are the caller's own."""
    assert not {"--user", "--fakeroot", "-f"} & set(plan.make(request("cpu", "cpu-only", [])).argv)
