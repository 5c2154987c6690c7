"""Builds of extensions that a killed run left in the middle, and where offloading can be done as it is asked for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fl_trainers import sharding
from fl_trainers.config import Config, Data, Method, Model, Run, Training
from fl_trainers.progress import Events


def test_a_lock_that_nobody_holds_any_more_is_taken_away(tmp_path: Path) -> None:
    old = time.time() - sharding.DEAD_AFTER - 60
    for name in ("dead", "slow", "done"):
        (tmp_path / name).mkdir()
        for file in ("lock", "shm.o")[name == "done" :]:
            (tmp_path / name / file).touch()
            os.utime(tmp_path / name / file, (old, old))
        os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / "slow" / "shm.o")  # written just now: somebody builds
    assert sharding.forget_dead_builds({"TORCH_EXTENSIONS_DIR": str(tmp_path)}) == [tmp_path / "dead" / "lock"]
    assert not (tmp_path / "dead" / "lock").exists() and (tmp_path / "slow" / "lock").exists()
    assert sharding.forget_dead_builds({}) == []


@pytest.mark.parametrize(
    ("lane", "compiles", "device", "left", "forced", "said"),
    [
        ("cpu", True, "cpu", {"stage": 2}, None, 1),
        ("cpu", True, "nvme", {"stage": 2, "offload_optimizer": {"device": "nvme"}}, None, 0),
        ("cuda", True, "cpu", {"stage": 2, "offload_optimizer": {"device": "cpu"}}, None, 0),
        ("cuda", False, "cpu", {"stage": 2, "offload_optimizer": {"device": "cpu"}}, False, 1),
    ],
)
def test_an_optimizer_is_offloaded_by_what_can_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: Any, compiles: bool, device: str, left: Any, forced: Any, said: int
) -> None:
    monkeypatch.setattr(sharding, "_compiles", lambda: compiles)
    deepspeed = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": device}}}
    config = Config(
        run=Run(name="r", lane=lane, stack="s", events=str(tmp_path / "events.jsonl")), model=Model(name="m", path="m", kind="folder"),
        data=Data(), method=Method(), training=Training(output_dir=str(tmp_path), arguments={"deepspeed": deepspeed, "seed": 1}),
    )  # fmt: skip
    events = Events(tmp_path / "events.jsonl")
    made = sharding.without_offload(config, events).training.arguments
    assert made["deepspeed"]["zero_optimization"] == left and made["seed"] == 1
    assert made["deepspeed"].get("zero_force_ds_cpu_optimizer") is forced
    assert events.counts.get("warning", 0) == said
    assert config.training.arguments["deepspeed"] == deepspeed
