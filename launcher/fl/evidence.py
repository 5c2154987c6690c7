"""Evidence: a record that a model and recipe did or did not work on a stack and accelerator. Made by a run, never by hand (design §4.8)."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fl import evidence_private as private
from fl import modelscope, run_image
from fl.errors import FlError, HardwareError, RecipeError, StackError

if TYPE_CHECKING:
    from fl.matrix import Matrix, Stack

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


def of_run(
    folder: Path, outcome: Outcome, failure: Mapping[str, str] | None, reference: Mapping[str, Any] | None = None
) -> dict[str, Any]:  # fmt: skip
    """The evidence of a run, from the files in its folder: so that also the run of a launcher that died leaves its own.
    `reference`: the curve that its losses were held against, and the largest difference.

    A file that is missing or broken leaves its fields null. Nothing in it tells of paths, users or hosts.
    """
    plan, config, hardware, trainer = (_read(folder / name) for name in ("plan.json", "config.json", "hardware.json", "record.json"))
    plan = run_image.seen_in(plan, _read(folder / run_image.NAME))
    model, wanted, method = _part(trainer, "model"), _part(config, "model"), _part(config, "method")
    image, who = _part(plan, "image"), private.owner((plan, config))
    kind = "hub" if modelscope.of(str(wanted.get("path"))) else wanted.get("kind")
    return identified({
        "schema": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "outcome": outcome,
        "lane": plan.get("lane"),
        "stack": plan.get("stack"),
        "model": {
            "name": private.model_name(wanted.get("name"), kind, who),
            **{key: model.get(key) for key in ("model_type", "architecture", "parameters", "config_sha256")},
            "revision": wanted.get("revision") if wanted.get("kind") == "hub" else None,
        },
        "method": {
            "stage": method.get("stage"),
            "finetuning_type": method.get("finetuning_type"),
            "quantization_bit": _part(wanted, "quantization").get("bits"),
            "trainable_parameters": model.get("trainable_parameters"),
            "dtype": model.get("dtype"),
        },
        "accelerator": _accelerator(plan, hardware, trainer),
        "image": _image(image, who),
        "environment": {
            "engine": plan.get("engine"),
            "lock_sha256": plan.get("lock_sha256"),
            "matches_lock": plan.get("matches_lock", False),
            "versions": _part(trainer, "versions"),
            **({"extras": _extras(plan["extras"])} if plan.get("extras") else {}),
        },
        "recipe_sha256": plan.get("recipe_sha256"),
        "trainer_sha256": plan.get("trainer_sha256"),
        "matrix_sha256": plan.get("matrix_sha256"),
        "row_sha256": _row_of(plan),
        "metrics": _part(trainer, "metrics") or {"loss": [], "tokens_per_second": None, "peak_memory_mib": None},
        "reference": dict(reference) if reference else None,
        "failure": {key: private.without(text, who) for key, text in failure.items()} if failure else None,
    })  # fmt: skip


def outcome(error: FlError | None) -> Outcome:
    """What a run's end says: one that the machine or the recipe did not allow was refused, one that broke has failed."""
    if error is None:
        return "passed"
    return "refused" if isinstance(error, HardwareError | StackError | RecipeError) else "failed"


def _extras(planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What stood beside the row's packages; the row's hash is without them. No folders: they name users."""
    return [{key: extra.get(key) for key in ("name", "packages", "lock_sha256")} for extra in planned]


def _image(image: Mapping[str, Any], who: private.Owner) -> dict[str, Any] | None:
    if not image.get("reference"):
        return None
    shown = {"reference": private.image_reference(str(image["reference"]), who), "digest": image.get("digest")}
    return {**shown, "id": image["id"]} if image.get("id") else shown


def row_sha256(matrix: Matrix, stack: Stack) -> str:
    """Hash of what a row puts into a training environment: its claims, sources, status and serving side change no result."""
    row = stack.model_dump(mode="json", include={"lane", "runtime", "python", "base", "torch_from", "index", "features"})
    return hashlib.sha256(canonical({**row, "packages": matrix.packages(stack)})).hexdigest()


def _row_of(plan: Mapping[str, Any]) -> str | None:
    """The row's hash, where the matrix of today is the one that the plan was made with."""
    from fl import matrix as matrices

    try:
        rows = matrices.load()
        same = rows.sha256 == plan.get("matrix_sha256")
        return row_sha256(rows, rows.stack(str(plan.get("stack")))) if same else None
    except FlError:
        return None


def _accelerator(plan: Mapping[str, Any], hardware: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The devices of the plan, with the driver that was found for their lane; the processor where there are none."""
    from fl.lanes import LANES  # not for `fl audit`, which only reads

    indices, lane = plan.get("accelerators") or [], plan.get("lane")
    devices = [a for a in hardware.get("accelerators") or [] if a.get("lane") == lane and a.get("index") in indices]
    first = devices[0] if devices else {"name": _part(hardware, "cpu").get("model"), "arch": hardware.get("arch")}
    drivers = hardware.get("drivers") or {}
    driver = _part(drivers, str(LANES[lane].DRIVER)) if lane in LANES and devices else {}
    return {
        "name": first.get("name"), "arch": first.get("arch"), "count": len(devices), "driver": driver.get("version"),
        "seen_by_trainer": _part(trainer, "accelerator").get("name"),
    }  # fmt: skip


def _part(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> Any:
    """The value with NaN and infinities as null: JSON has no numbers for them, and a run that failed on one still leaves evidence."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return finite(document) if isinstance(document, dict) else {}
