"""Evidence: a record that a model and recipe did or did not work on a stack and accelerator. Made by a run, never by hand (design §4.8)."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fl.decide import Decision

Outcome = Literal["passed", "failed", "refused"]


def canonical(record: Mapping[str, Any]) -> bytes:
    """The bytes that the id is the hash of: the record without its id, keys sorted, no spaces."""
    rest = {key: value for key, value in record.items() if key != "id"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def identified(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its id."""
    return {
        "schema": record["schema"],
        "id": hashlib.sha256(canonical(record)).hexdigest(),
        **{k: v for k, v in record.items() if k not in ("schema", "id")},
    }


def make(
    decision: Decision, trainer: Mapping[str, Any], outcome: Outcome, failure: Mapping[str, str] | None, trainer_sha256: str
) -> dict[str, Any]:
    """A run's evidence. `trainer` is the trainer's own record.json, empty where it did not get that far."""
    plan, config = decision.plan, decision.config
    model, accelerator = trainer.get("model") or {}, trainer.get("accelerator") or {}
    driver = next((d.get("version") for d in decision.hardware.drivers.values()), None) if decision.chosen else None
    return identified({
        "schema": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "outcome": outcome,
        "lane": plan.lane,
        "stack": plan.stack,
        "model": {
            "name": config.model.name,
            **{key: model.get(key) for key in ("model_type", "architecture", "parameters", "config_sha256")},
            "revision": config.model.revision if config.model.kind == "hub" else None,
        },
        "method": {
            "stage": config.method.stage,
            "finetuning_type": config.method.finetuning_type,
            "quantization_bit": config.model.quantization.bits if config.model.quantization else None,
            "trainable_parameters": model.get("trainable_parameters"),
            "dtype": accelerator.get("dtype"),
        },
        "accelerator": {
            "name": decision.chosen[0].name if decision.chosen else decision.hardware.cpu.model,
            "arch": decision.chosen[0].arch if decision.chosen else decision.hardware.arch,
            "count": len(decision.chosen),
            "driver": driver,
            "seen_by_trainer": accelerator.get("name"),
        },
        "image": None if plan.image.reference is None else {"reference": plan.image.reference, "digest": plan.image.digest},
        "environment": {
            "engine": plan.engine,
            "lock_sha256": plan.lock_sha256,
            "matches_lock": decision.matches_lock,
            "versions": trainer.get("versions") or {},
        },
        "recipe_sha256": plan.recipe_sha256,
        "trainer_sha256": trainer_sha256,
        "matrix_sha256": plan.matrix_sha256,
        "metrics": trainer.get("metrics") or {"loss": [], "tokens_per_second": None, "peak_memory_mib": None},
        "reference": None,
        "failure": dict(failure) if failure else None,
    })  # fmt: skip


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null: JSON has no numbers for them, and a run that failed on one still leaves evidence."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def read_trainer(folder: Path) -> dict[str, Any]:
    """What the trainer recorded; empty where it recorded nothing or half of something."""
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return finite(record) if isinstance(record, dict) else {}
