"""lean.py: what is hidden from transformers is not what the run's optimizer imports."""

from __future__ import annotations

from typing import Any

import pytest

from fl_trainers import lean
from fl_trainers.config import Config


def config(optim: str, **method: Any) -> Config:
    made: dict[str, Any] = {
        "schema": 1, "run": {"name": "x", "lane": "cpu", "stack": "x", "events": "/x"},
        "model": {"name": "x", "path": "x", "kind": "tiny"}, "data": {"train": []}, "method": {"stage": "sft", **method},
        "training": {"output_dir": "/x", "arguments": {"optim": optim}},
    }  # fmt: skip
    return Config.model_validate(made)


@pytest.mark.parametrize(
    "optim", ["adamw_8bit", "paged_adamw_32bit", "rmsprop_bnb", "lion_32bit", "ademamix", "galore_adamw", "apollo_adamw"]
)
def test_an_optimizer_that_imports_bitsandbytes_finds_it(optim: str) -> None:
    assert "bitsandbytes" in lean.needed(config(optim))


def test_others_do_not_wait_for_it() -> None:
    for optim in ("adamw_torch", "sgd", "adafactor", "lomo"):
        assert "bitsandbytes" not in lean.needed(config(optim))
    assert "bitsandbytes" in lean.needed(config("adamw_torch", low_rank={"kind": "apollo"}))
