"""`fl run`: every cause of a refusal has its exit code, what was found, and what to type. On recorded machines; nothing starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import HOSTS

Fl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe that is right but for what a test changes."""
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "input": "", "output": "b"}]')
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "rows.json"}, "gone": {"file_name": "gone.json"}}')

    def write(**changes: object) -> str:
        values = {
            "model_name_or_path": "builtin/tiny-qwen3", "stage": "sft", "do_train": True, "finetuning_type": "full", "dataset": "mine",
            "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "max_steps": 2, **changes,
        }  # fmt: skip
        file = tmp_path / "recipe.yaml"
        file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
        return str(file)

    return write


def dry(fl: Fl, host: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return fl("run", "--dry-run", *arguments, env={"FL_REPLAY": str(HOSTS / host), **environment})


@pytest.mark.parametrize(
    ("host", "arguments", "exit_code", "said"),
    [
        ("cpu-only", ("--hw", "cuda"), 3, ["NVIDIA", "--hw cpu"]),
        ("cpu-only", ("--hw", "rocm"), 3, ["AMD", "--hw cpu"]),
        ("two-lanes", (), 3, ["cuda", "--hw cpu"]),
        ("mi210x2-no-permission", (), 3, ["/dev/dri/renderD128", "usermod", "--hw cpu"]),
        ("h100x8-driver580", ("--devices", "9"), 3, ["9"]),
        ("h100x8-driver580", ("--devices", "count:12"), 3, ["12"]),
        ("h100x1-driver535", ("--stack", "cuda130-torch214"), 4, ["needs NVIDIA driver >= 580.65.06, this machine has 535"]),
        ("cpu-only", ("--stack", "cpu-torch2113"), 4, ["cpu-torch213"]),
        ("h100x1-driver535", ("--stack", "cpu-torch213"), 4, ["--hw cpu"]),
        ("cpu-only", ("--engine", "docker", "--python", "/usr/bin/python3"), 2, ["--engine host"]),
    ],
)
def test_hardware_and_stacks(
    fl: Fl, recipe: Callable[..., str], host: str, arguments: tuple[str, ...], exit_code: int, said: list[str]
) -> None:
    done = dry(fl, host, *arguments, recipe())
    assert done.returncode == exit_code, done.stderr
    for words in said:
        assert words in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "min"}, ["min", "mine"]),
        ({"dataset": "gone"}, ["gone.json"]),
        ({"dataset_dir": "/nowhere"}, ["dataset_info.json"]),
        ({"learning_rat": 1e-4}, ["learning_rat", "learning_rate", "recipe.yaml:9"]),
        ({"learning_rate": "fast"}, ["learning_rate", "fast"]),
        ({"stage": "ppoo"}, ["ppoo", "ppo"]),
        ({"model_name_or_path": "builtin/tiny-qwen"}, ["builtin/tiny-qwen3"]),
        ({"model_name_or_path": "/nowhere/model"}, ["/nowhere/model"]),
        ({"fl": {"hardware": "cuda"}}, ["hardware"]),
    ],
)
def test_recipes_and_data(fl: Fl, recipe: Callable[..., str], changes: dict[str, object], said: list[str]) -> None:
    done = dry(fl, "cpu-only", recipe(**changes))
    assert done.returncode == 5, done.stderr
    for words in said:
        assert words in done.stderr


def test_a_model_folder_without_config(fl: Fl, recipe: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    done = dry(fl, "cpu-only", recipe(model_name_or_path=str(tmp_path / "model")))
    assert done.returncode == 5
    assert "config.json" in done.stderr


def test_a_model_that_is_a_file(fl: Fl, recipe: Callable[..., str], tmp_path: Path) -> None:
    done = fl("run", "--dry-run", recipe(model_name_or_path="rows.json"), env={"FL_REPLAY": str(HOSTS / "cpu-only")}, cwd=tmp_path)
    assert done.returncode == 5 and f"{tmp_path}/rows.json is a file; a model is a folder" in done.stderr, done.stderr


def test_an_output_folder_that_cannot_be_written(fl: Fl, recipe: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = dry(fl, "cpu-only", recipe(output_dir=str(tmp_path / "file" / "out")))
    assert done.returncode == 5
    assert "output" in done.stderr
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        assert dry(fl, "cpu-only", recipe(output_dir=str(tmp_path / "closed" / "out"))).returncode == 5


def test_bf16_where_the_device_has_none_is_adapted_or_refused(fl: Fl, recipe: Callable[..., str], tmp_path: Path) -> None:
    shutil.copytree(HOSTS / "cpu-only", tmp_path / "host")
    cpuinfo = tmp_path / "host" / "root" / "proc" / "cpuinfo"
    cpuinfo.write_text(cpuinfo.read_text().replace("amx_bf16", "").replace("avx512_bf16", ""))
    environment = {"FL_REPLAY": str(tmp_path / "host")}
    adapted = fl("run", "--dry-run", "--json", recipe(bf16=True), env=environment)
    assert adapted.returncode == 0, adapted.stderr
    (change,) = [a for a in json.loads(adapted.stdout)["adaptations"] if a["key"] == "bf16"]
    assert (change["from"], change["to"], change["effect"]) == (True, False, "numerics")
    strict = fl("run", "--dry-run", "--strict", recipe(bf16=True), env=environment)
    assert strict.returncode == 5
    assert "bf16" in strict.stderr
    assert dry(fl, "cpu-only", "--strict", recipe(bf16=True)).returncode == 0  # this one has AMX


def test_too_little_memory_names_cheaper_methods_and_force_overrides(fl: Fl, recipe: Callable[..., str]) -> None:
    text = recipe(model_name_or_path="some-org/some-model-8b", bf16=True)
    refused = dry(fl, "laptop-4060-igpu", text)
    assert refused.returncode == 5, refused.stdout
    assert "GB" in refused.stderr
    assert "quantization_bit=4" in refused.stderr
    assert "--force" in refused.stderr
    assert dry(fl, "laptop-4060-igpu", "--force", text).returncode == 0


def test_nothing_is_started_on_a_recorded_machine(fl: Fl, recipe: Callable[..., str]) -> None:
    done = fl("run", recipe(), env={"FL_REPLAY": str(HOSTS / "cpu-only")})
    assert done.returncode == 2
    assert "--dry-run" in done.stderr


def test_a_dry_run_writes_nothing(fl: Fl, recipe: Callable[..., str], tmp_path: Path) -> None:
    homes = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "STATE", "CONFIG")}
    file = recipe()
    before = sorted(tmp_path.rglob("*"))
    assert dry(fl, "cpu-only", file, **homes).returncode == 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("host", "engine"), [("h100x8-driver580", "docker"), ("mi300x8-spx", "podman"), ("cpu-only", "host")])
def test_print_command_is_the_argv_of_the_plan(fl: Fl, recipe: Callable[..., str], host: str, engine: str) -> None:
    import re
    import shlex

    file = recipe()
    python = () if host == "cpu-only" or engine != "host" else ("--python", "/usr/bin/python3")
    printed = dry(fl, host, "--engine", engine, *python, "--print-command", file)
    plan = json.loads(dry(fl, host, "--engine", engine, *python, "--json", file).stdout)
    name = re.compile(r"recipe-\d{8}-\d{6}-[0-9a-f]{4}")
    assert [name.sub("RUN", word) for word in shlex.split(printed.stdout)] == [name.sub("RUN", word) for word in plan["argv"]]
