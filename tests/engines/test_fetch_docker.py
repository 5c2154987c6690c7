"""`fl fetch --engine docker`: an image from a registry's mirror, model and data from a local hub, then a run without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from image_tools import docker, fl, need_docker, registry, tiny
from tests.training.stand_in_hub import hub

pytestmark = pytest.mark.engine
STACK = "cpu-torch213"
BASE = os.environ.get("FL_TEST_BASE", "flpy:bookworm")
RECIPE = """\
model_name_or_path: someone/tiny
stage: sft
do_train: true
finetuning_type: lora
dataset: someone/rows
dataset_dir: ONLINE
template: qwen
cutoff_len: 64
max_steps: 2
logging_steps: 1
output_dir: out
"""


def settings(text: str) -> None:
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "fl"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_an_image_comes_from_the_mirror_of_its_registry_and_is_found_there_again(tmp_path: Path) -> None:
    need_docker()
    (tmp_path / "storage").mkdir()
    with registry(tmp_path / "storage") as address:
        mirrored = f"{address}/mirror/team/fl-box:1"
        tiny(mirrored)
        try:
            assert docker("push", mirrored).returncode == 0
            docker("image", "rm", mirrored)
            settings(f"mirrors: {{registry: {{images.example.org: {address}/mirror}}}}\n")
            rest = ("--json", "tiny-sft", f"output_dir={tmp_path}/out")
            words = ("--engine", "docker", "--image", "images.example.org/team/fl-box:1", *rest)
            assert document(fl("fetch", *words))["image"] == mirrored
            plan = document(fl("run", "--dry-run", *words))
            assert (plan["image"]["reference"], plan["image"]["source"], plan["options"]["network"]) == (mirrored, "local", "none")
            absent = fl("fetch", "--engine", "docker", "--image", "images.example.org/team/fl-none:1", *rest)
            assert absent.returncode == 7
            assert f"{address}/mirror/team/fl-none:1" in json.loads(absent.stdout)["error"]["message"]
        finally:
            docker("image", "rm", "-f", mirrored)


@pytest.fixture
def repositories(tmp_path: Path, train_python: Path) -> Path:
    """A model that the trainer made, and some rows."""
    model, rows = tmp_path / "hub" / "models" / "someone" / "tiny", tmp_path / "hub" / "datasets" / "someone" / "rows"
    rows.mkdir(parents=True)
    told = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(8)]
    (rows / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    done = fl("run", "--engine", "host", "tiny-sft", "max_steps=1", f"output_dir={model}")
    assert done.returncode == 0, done.stderr
    for file in model.glob("train*"):
        file.unlink()
    return tmp_path / "hub"


def test_what_was_fetched_in_a_container_trains_in_one_without_a_network(repositories: Path, tmp_path: Path) -> None:
    need_docker(BASE)
    gateway = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").stdout.strip()
    built = fl("images", "build", STACK, "--base", BASE, timeout=900)
    assert built.returncode == 0, built.stderr[-3000:]
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("output_dir: out", f"output_dir: {tmp_path}/out"))
    words = ("--engine", "docker", "--json", str(tmp_path / "recipe.yaml"))
    place = {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    try:
        with hub(repositories, gateway) as server:
            settings(f"mirrors: {{hub: {server.address}}}\n")
            found = document(fl("fetch", *words, **place))
        assert (found["models"], found["datasets"], found["offline"]) == (["someone/tiny"], ["someone/rows"], True)
        plan = document(fl("run", "--dry-run", *words, **place))
        assert plan["argv"][plan["argv"].index("--network") + 1] == "none"
        record = document(fl("run", *words, **place))
        assert len(record["metrics"]["loss"]) == 2
        assert docker("ps", "--all", "--quiet", "--filter", f"label=fl.run={plan['run']}").stdout == ""
    finally:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
