"""The tiny run of a verification as evidence: the same record that a run leaves, made from what the image told."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl import evidence
from fl.detect import detect, open_host
from fl.errors import UsageError

if TYPE_CHECKING:
    from fl.images.verify import Report
    from fl.matrix import Matrix, Stack


def allowed(stack: Stack) -> None:
    """UsageError for a stack of devices: no device is given to the image, and a run without one proves nothing of it."""
    if stack.hosts.arches or stack.hosts.driver:
        said = f"{stack.id} is for devices, and verification gives none to the image: what it trains there is no evidence for them"
        raise UsageError(said, f"fl conform --stack {stack.id}   on a machine that has them")


def record(matrix: Matrix, stack: Stack, report: Report) -> dict[str, Any]:
    """The evidence. A run that failed is evidence too."""
    passed = {check.name: check.passed for check in report.checks}
    config = str(report.proof.get("config", "{}"))
    plan: dict[str, Any] = {
        "lane": stack.lane, "stack": stack.id, "engine": "docker", "accelerators": [],
        "image": {"reference": report.reference, "digest": report.digest}, "lock_sha256": report.lock_sha256,
        "matches_lock": bool(passed.get("versions") and passed.get("lock")), "matrix_sha256": matrix.sha256,
        "recipe_sha256": hashlib.sha256(config.encode()).hexdigest(), "trainer_sha256": report.proof.get("trainer_sha256"),
    }  # fmt: skip
    training = next(check for check in report.checks if check.name == "training")
    failure = None if training.passed else {"type": "TrainingError", "message": "\n".join(training.found)[:2000]}
    with tempfile.TemporaryDirectory(prefix="fl-proof-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        (folder / "config.json").write_text(config, encoding="utf-8")
        (folder / "record.json").write_text(str(report.proof.get("record", "{}")), encoding="utf-8")
        (folder / "hardware.json").write_text(json.dumps(detect(open_host()).to_json()), encoding="utf-8")
        return evidence.of_run(folder, "passed" if training.passed else "failed", failure)
