"""Tokens: they reach the training, and nothing else shows them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fl.plan import HIDDEN
from fl_trainers.__main__ import take_secrets

Fl = Callable[..., "subprocess.CompletedProcess[str]"]
TOKEN = "hf_0123456789secret"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "input": "", "output": "b"}]')
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "rows.json"}}')
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model_name_or_path: some-org/some-model-1b\nstage: sft\ndo_train: true\nfinetuning_type: lora\ndataset: mine\n"
        f"dataset_dir: {tmp_path}\noutput_dir: {tmp_path}/out\n"
    )
    return file


@pytest.mark.parametrize("engine", ["docker", "podman", "host"])
def test_a_token_is_named_and_never_shown(fl: Fl, recipe: Path, engine: str) -> None:
    record = Path(__file__).parents[1] / "data" / "hosts" / "cpu-only"
    done = fl("run", "--dry-run", "--json", "--engine", engine, str(recipe), env={"HF_TOKEN": TOKEN, "FL_REPLAY": str(record)})
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert TOKEN not in done.stdout + done.stderr
    assert plan["environment"]["HF_TOKEN"] == HIDDEN
    assert ("FL_SECRETS" in plan["environment"]) is (engine != "host")


def test_without_a_token_none_is_named(fl: Fl, recipe: Path) -> None:
    record = Path(__file__).parents[1] / "data" / "hosts" / "cpu-only"
    done = fl("run", "--dry-run", "--json", "--engine", "docker", str(recipe), env={"FL_REPLAY": str(record), "HOME": str(recipe.parent)})
    assert "HF_TOKEN" not in json.loads(done.stdout)["environment"]


def test_the_trainer_takes_them_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"HF_TOKEN": TOKEN}))
    environ = {"FL_SECRETS": str(file), "A": "b"}
    take_secrets(environ)
    assert environ == {"A": "b", "HF_TOKEN": TOKEN}
