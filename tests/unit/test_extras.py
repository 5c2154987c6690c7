"""extras.py through `fl run --dry-run` and `fl recipe check`: what a recipe asks for is beside the stack's packages, or refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl import extras, gc, paths
from fl import matrix as rows
from fl.images import extras as locks
from fl_trainers.config import Config

MATRIX = rows.load()
Fl = Callable[..., subprocess.CompletedProcess[str]]
HOST = ("--hw", "cpu", "--engine", "host", "--dry-run", "--json")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    """Writes a recipe with more lines."""

    def write(lines: str) -> str:
        (tmp_path / "sums.json").write_text('[{"instruction": "1 + 1", "output": "2"}]')
        text = "model_name_or_path: builtin/tiny-llama\nstage: sft\ndo_train: true\ndataset: sums.json\noutput_dir: out\nmax_steps: 2\n"
        (tmp_path / "recipe.yaml").write_text(text + lines)
        return str(tmp_path / "recipe.yaml")

    return write


def plan(fl: Fl, *words: str, **options: Any) -> dict[str, Any]:
    done = fl("run", *words, **options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


FULL = "finetuning_type: full\n"
ASKED = {
    "galore": FULL + "use_galore: true\n", "apollo": FULL + "use_apollo: true\n", "badam": FULL + "use_badam: true\n",
    "adam-mini": FULL + "use_adam_mini: true\n", "tensorboard": "report_to: tensorboard\n", "wandb": "report_to: wandb\n",
    "mlflow": "report_to: [mlflow]\n", "swanlab": "report_to: swanlab\n", "trackio": "report_to: trackio\n",
}  # fmt: skip


def test_every_extra_of_the_matrix_is_asked_for_by_a_recipe(recipe: Callable[[str], str]) -> None:
    from fl.resolve import draft, read

    assert set(ASKED) == set(MATRIX.extras)
    for name, lines in ASKED.items():
        config = draft(read(recipe(lines), ()), lane="cpu", stack="cpu-torch213")
        assert list(extras.wanted(MATRIX, config)) == [name]
    lines = "optim: galore_adamw\noptim_target_modules: [q_proj]\nreport_to: [wandb, tensorboard]\n"
    both = draft(read(recipe(lines), ()), lane="cpu", stack="x")
    assert list(extras.wanted(MATRIX, both)) == ["galore", "tensorboard", "wandb"]
    for lines in ("report_to: none\n", "report_to: all\n", "optim: adamw_torch\n", "use_galore: false\n"):
        assert extras.wanted(MATRIX, draft(read(recipe(lines), ()), lane="cpu", stack="x")) == {}


def test_the_plan_has_a_folder_an_extra_and_the_stack_s_lock_as_it_was(fl: Fl, recipe: Callable[[str], str], tmp_path: Path) -> None:
    without = plan(fl, *HOST, recipe(""), cwd=tmp_path)
    assert "extras" not in without
    found = plan(fl, *HOST, recipe(ASKED["galore"] + "report_to: tensorboard\n"), cwd=tmp_path)
    assert [(one["name"], one["packages"]) for one in found["extras"]] == [
        ("galore", ["galore-torch==1.0"]), ("tensorboard", ["tensorboard==2.21.0"]),
    ]  # fmt: skip
    folders = [one["folder"] for one in found["extras"]]
    assert found["environment"]["PYTHONPATH"] == ":".join([without["environment"]["PYTHONPATH"], *folders])
    assert (found["lock_sha256"], found["argv"][0], found["matches_lock"]) == (without["lock_sha256"], without["argv"][0], True)
    assert not any(Path(folder).exists() for folder in folders), "a dry run writes nothing"
    told = fl("run", *HOST[:-1], recipe(ASKED["galore"]), cwd=tmp_path)
    assert "extras  galore (galore-torch==1.0)" in told.stdout


def test_a_container_sees_the_folder_at_its_place(fl: Fl, recipe: Callable[[str], str], tmp_path: Path) -> None:
    words = ("--engine", "docker", "--dry-run", "--json", recipe(ASKED["badam"]))
    replay = {"FL_REPLAY": str(Path(__file__).resolve().parents[1] / "data" / "hosts" / "h100x8-driver580")}
    found = plan(fl, *words, cwd=tmp_path, env=replay)
    other = plan(fl, "--image", "registry.example.org/mine:1", *words, cwd=tmp_path, env=replay)
    assert "extras" not in other, "nobody knows what the caller's image holds"
    (one,) = found["extras"]
    assert {"source": one["folder"], "target": one["folder"], "read_only": True} in found["mounts"]
    assert one["folder"] in found["environment"]["PYTHONPATH"].split(":")
    assert f"source={one['folder']}" in " ".join(found["argv"])


def test_an_interpreter_of_the_caller_s_is_taken_as_it_is(fl: Fl, recipe: Callable[[str], str], tmp_path: Path) -> None:
    import sys

    found = plan(fl, *HOST, "--python", sys.executable, recipe(ASKED["wandb"]), cwd=tmp_path)
    assert "extras" not in found


def test_a_stack_whose_lock_is_partial_refuses_with_what_to_type(fl: Fl, recipe: Callable[[str], str]) -> None:
    done = fl("recipe", "check", "--json", recipe("report_to: wandb\n"))
    lanes = json.loads(done.stdout)["lanes"]
    assert lanes["cpu"]["verdict"] == "runs"
    assert "wandb is put beside the stack's own packages: wandb==0.30.0" in lanes["cpu"]["notes"]
    assert lanes["xpu"]["verdict"] == "refused"
    (note,) = lanes["xpu"]["notes"]
    assert "report_to: wandb needs the package wandb, which is not locked for xpu-torch212 on linux/amd64: its own lock is not" in note


def test_matrix_show_tells_what_a_stack_has_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    from fl.cli import main

    told = {}
    for stack in ("cuda130-torch214", "xpu-torch212", "cann91-torch210"):
        with pytest.raises(SystemExit):
            main(["matrix", "show", stack])
        told[stack] = next(line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("extras"))
    assert told["cuda130-torch214"].split(None, 1) == ["extras", ", ".join(MATRIX.extras)]
    assert told["xpu-torch212"].endswith("none: its own lock is not complete")
    assert told["cann91-torch210"].startswith("extras on linux/arm64") and "; without tensorboard: Because " in told["cann91-torch210"]


def config(**arguments: Any) -> Config:
    made: dict[str, Any] = {
        "schema": 1, "run": {"name": "x", "lane": "cpu", "stack": "x", "events": "/x"},
        "model": {"name": "x", "path": "x", "kind": "folder"}, "data": {"train": []}, "method": {"stage": "sft"},
        "training": {"output_dir": "/x", "arguments": arguments},
    }  # fmt: skip
    return Config.model_validate(made)


def test_an_extra_that_does_not_fit_is_refused_with_the_lock_s_reason() -> None:
    row = MATRIX.stack("cuda130-torch213-rollout")
    with pytest.raises(extras.RecipeError, match=r"mlflow-skinny, which is not locked for .*cachetools") as caught:
        extras.choose(MATRIX, row, "linux/amd64", config(report_to=["mlflow"]))
    assert caught.value.exit_code == 5
    assert "--stack cuda" in caught.value.remedy and "report_to=none" in caught.value.remedy and "--python PATH" in caught.value.remedy


def test_extras_of_no_lock_of_today_can_go() -> None:
    row = MATRIX.stack("cpu-torch213")
    used = gc.Use((), ())
    ours = extras.locked(MATRIX, row, "linux/amd64")[0].folder
    other, half = paths.cache_home() / "extras" / "badam-0000000000000000", paths.cache_home() / "extras" / ".badam-0.77"
    for folder in (ours, other, half):
        folder.mkdir(parents=True)
    found = {one.path for one in gc.find(MATRIX, used, 0.0) if one.kind == "extra"}
    assert found == {other, half}


def test_evidence_of_a_run_names_its_extras_and_no_folder(tmp_path: Path) -> None:
    from fl import evidence

    one = extras.locked(MATRIX, MATRIX.stack("cpu-torch213"), "linux/amd64")[0]
    planned = {"lane": "cpu", "stack": "cpu-torch213", "matrix_sha256": MATRIX.sha256, "engine": "host"}
    for folder, more in (("with", {"extras": [one.to_json()]}), ("without", {})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plan.json").write_text(json.dumps({**planned, **more}))
    told = {name: evidence.of_run(tmp_path / name, "passed", None) for name in ("with", "without")}
    file = locks.place(MATRIX.stack("cpu-torch213"), "linux/amd64")
    assert told["with"]["environment"]["extras"] == [
        {"name": "galore", "packages": ["galore-torch==1.0"], "lock_sha256": locks.lock.sha256(file)}
    ]
    assert "extras" not in told["without"]["environment"]
    assert told["with"]["row_sha256"] == told["without"]["row_sha256"] is not None
