"""Records for tests, as runs make them."""

from __future__ import annotations

from typing import Any

from fl.evidence import identified


def record(**parts: Any) -> dict[str, Any]:
    """A passed run of the CPU row; parts replace fields, mappings are merged."""
    made: dict[str, Any] = {
        "schema": 1, "time": "2026-11-24T15:00:00Z", "outcome": "passed", "lane": "cpu", "stack": "cpu-torch213",
        "model": {"name": "acme/one", "model_type": "llama", "architecture": "LlamaForCausalLM", "parameters": 7},
        "method": {"stage": "sft", "finetuning_type": "lora"},
        "accelerator": {"name": "Some CPU", "arch": "x86_64", "count": 0, "driver": None}, "image": None,
        "environment": {"engine": "host", "lock_sha256": "l" * 64, "matches_lock": True, "versions": {"torch": "2.13.0+cpu"}},
        "recipe_sha256": "r" * 64, "trainer_sha256": "t" * 64, "matrix_sha256": "m" * 64,
        "metrics": {"loss": [2.0, 1.5], "tokens_per_second": 9.0, "peak_memory_mib": 1.0}, "reference": None, "failure": None,
    }  # fmt: skip
    for key, value in parts.items():
        made[key] = {**made[key], **value} if isinstance(value, dict) and isinstance(made[key], dict) else value
    return identified(made)
