"""A trainer that is warm, and configs for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import SUMS, Trainer


@pytest.fixture(scope="session")
def trainer(train_python: Path) -> Iterator[Trainer]:
    server = Trainer(train_python)
    yield server
    server.close()


@pytest.fixture(scope="session")
def trainer_of_shards(train_python: Path) -> Iterator[Trainer]:
    """One that has DeepSpeed imported too."""
    server = Trainer(train_python, "deepspeed")
    yield server
    server.close()


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a config with a tiny model and 36 sums; parts given as keywords are merged into it."""

    def make(
        folder: str = "run", rows: Any = SUMS, *, dataset: dict[str, Any] | None = None, file: str = "sums.json", **parts: Any
    ) -> Path:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        data = tmp_path / file
        if rows is not None:
            data.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
        arguments = {"max_steps": 8, "learning_rate": 0.02, "logging_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
        made: dict[str, Any] = {
            "schema": 1,
            "run": {"name": folder, "lane": "cpu", "stack": "cpu-torch213", "events": str(place / "events.jsonl")},
            "model": {"name": "builtin/tiny-llama", "path": "builtin/tiny-llama", "kind": "tiny", "gradient_checkpointing": False},
            "data": {"train": [{"name": "sums", "source": "file", "path": str(data), **(dataset or {})}], "cutoff_len": 128},
            "method": {"stage": "sft", "finetuning_type": "lora"},
            "training": {"output_dir": str(place / "out"), "plot_loss": False, "arguments": arguments},
        }
        arguments.update(parts.pop("arguments", {}))
        for key, value in parts.items():
            made.setdefault(key, {}).update(value)
        path = place / "config.json"
        path.write_text(json.dumps(made))
        return path

    return make
