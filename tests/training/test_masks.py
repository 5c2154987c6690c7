"""What is trained of a conversation by the own templates of real models, beside the answers that marked templates of them have."""

from __future__ import annotations

import pytest
from trainer_harness import Trainer

pytestmark = pytest.mark.training
MODELS = {
    "cohere": 4, "cohere2": 4, "deepseekv3": 4, "gemma": 3, "gemma3": 4, "gptoss": 5, "lfm2": 6, "llama3": 6, "nemotron_3_nano": 5,
    "phi3": 4, "phi3_5": 4, "qwen2_5": 6, "qwen3": 2, "qwen3_instruct_2507": 6, "qwen3_8": 3, "qwen3_vl": 6,
}  # fmt: skip
"""TRL's names, and of how many conversations at least its two templates write the same text."""
END = "<|im_end|>"
EQUAL = [
    ("qwen", "qwen2_5", END), ("qwen3", "qwen3", END), ("qwen3_nothink", "qwen3_instruct_2507", END), ("llama3", "llama3", "<|eot_id|>"),
    ("gemma3", "gemma3", "<end_of_turn>"), ("qwen3_vl_nothink", "qwen3_vl", END), ("qwen2_vl", "qwen2_5_vl", END),
    ("cohere", "cohere", "<|END_OF_TURN_TOKEN|>"), ("deepseek3", "deepseekv3", "<｜end▁of▁sentence｜>"),
]  # fmt: skip


def test_answers_are_those_of_the_marked_templates(trainer: Trainer) -> None:
    found = trainer.check("mask_checks.marked", list(MODELS))
    different = {(name, key): pair for name, talks in found.items() for key, pair in talks.items() if pair[0] != pair[1]}
    assert different == {}
    assert {name: len(found.get(name, {})) for name in MODELS if len(found.get(name, {})) < MODELS[name]} == {}


@pytest.mark.parametrize(
    ("model", "talk", "wanted"),
    [
        # an empty thought before the last answer only, and earlier thoughts gone: the model's template; no row is lost for it
        ("qwen3", "turns", ["Answer one.<|im_end|>", "b > a<|im_end|>", "<think>\n\n</think>\n\nSame.<|im_end|>"]),
        ("qwen3", "thoughts", ["Answer one.<|im_end|>", "<think>\nhm two\n</think>\n\nAnswer two.<|im_end|>"]),
        ("qwen3", "calls", ['<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
                            "<think>\n\n</think>\n\nIt is 42.<|im_end|>"]),
        # an answer ends otherwise where others follow it
        ("gptoss", "turns", [f"<|channel|>final<|message|>{text}" for text in ("Answer one.<|end|>", "b > a<|end|>", "Same.<|return|>")]),
        ("phi3", "turns", ["Answer one.<|end|>", "b > a<|end|>", "Same.<|end|>\n<|im_end|>"]),
        # the end of an answer is left to the next turn
        ("glm4moe", "call", ["\n<think></think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>" + END]),
        # <think> is given, and what earlier answers begin with has no part of that tag
        ("qwen3_5_think", "turns", ["Answer one.<|im_end|>", "b > a<|im_end|>", "\n</think>\n\nSame.<|im_end|>"]),
        ("deepseek_r1_distill", "calls", ["<｜end▁of▁sentence｜>", "It is 42.<｜end▁of▁sentence｜>"]),
    ],
)  # fmt: skip
def test_answers_that_templates_change_when_others_follow(trainer: Trainer, model: str, talk: str, wanted: list[str]) -> None:
    assert trainer.check("mask_checks.spans", model, talk) == wanted


def test_bundled_formats_are_the_models_own(trainer: Trainer) -> None:
    found = trainer.check("mask_checks.bundled", EQUAL)
    assert {key: pair for key, pair in found.items() if pair[0] != pair[1]} == {}
    assert len(found) == 3 * len(EQUAL)
