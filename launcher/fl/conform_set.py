"""The fixed set of small runs that `fl conform` makes: every stage, finetuning type, precision and feature on models that need no hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any, Final

from fl.errors import UsageError
from fl.matrix import Stack

TINY: Final = "builtin/tiny-llama"
ARCHITECTURES: Final = ("llama", "qwen3", "qwen3-moe", "gemma3", "glm4", "deepseek-v3", "phi3", "mistral")
SAMPLED: Final = frozenset({"grpo", "ppo"})
"""Stages that train on what the model itself wrote: random numbers differ between devices, and so does the data. Their loss is near 0
by design, so their curve is the reward."""
_BASE: Final[dict[str, Any]] = {
    "model_name_or_path": TINY, "stage": "sft", "do_train": True, "finetuning_type": "lora", "dataset": "sums", "dataset_dir": "data",
    "template": "chatml", "cutoff_len": 64, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "lr_scheduler_type": "constant",
    "max_steps": 8, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "plot_loss": False, "seed": 42,
    "overwrite_output_dir": True, "output_dir": "out",
}  # fmt: skip
_STAGES: Final[dict[str, dict[str, Any]]] = {
    "pt": {"dataset": "text"},
    "sft": {},
    "rm": {"dataset": "pairs"},
    "dpo": {"dataset": "pairs", "pref_beta": 0.5},
    "orpo": {"dataset": "pairs"},
    "simpo": {"dataset": "pairs"},
    "kto": {"dataset": "marks", "pref_beta": 0.5},
    "ppo": {"reward_funcs": "brief", "max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_steps": 4,
            "per_device_train_batch_size": 8},
    "grpo": {"reward_funcs": "brief", "num_generations": 4, "max_completion_length": 12, "max_steps": 4,
             "per_device_train_batch_size": 8},
}
_TYPES: Final[dict[str, dict[str, Any]]] = {"full": {"learning_rate": 1e-3}, "freeze": {"freeze_trainable_layers": 1}, "lora": {}}
_PRECISIONS: Final[dict[str, tuple[dict[str, Any], str | None]]] = {
    "fp32": ({}, None), "bf16": ({"bf16": True}, "bf16"), "pure_bf16": ({"pure_bf16": True}, "bf16"), "fp16": ({"fp16": True}, "fp16"),
}  # fmt: skip
"""Keys, and the feature of the row that allows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run. Its recipe has the same bytes on every machine."""

    name: str
    keys: dict[str, Any]
    precision: str = "fp32"
    feature: str | None = None
    """Key of the row's `features` that it stands for; None: every stack must pass it."""
    twin: str = ""
    """The case of the same run in fp32, whose curve on the CPU this one is held against."""
    quick: bool = False

    @property
    def model(self) -> str:
        """Its name."""
        return str(self.keys["model_name_or_path"])

    @property
    def sampled(self) -> bool:
        """Whether its data are samples."""
        return self.keys["stage"] in SAMPLED

    @property
    def drawn(self) -> bool:
        """Whether random numbers of the device enter the loss: samples, the dropout of rm's value head, NEFTune's noise."""
        return self.sampled or self.keys["stage"] == "rm" or "neftune_noise_alpha" in self.keys

    def recipe(self) -> bytes:
        """Its YAML."""
        lines = [f"# fl conform: {self.name}", *(f"{key}: {json.dumps(value)}" for key, value in self.keys.items())]
        return ("\n".join(lines) + "\n").encode()


def _case(
    name: str, *, precision: str = "fp32", feature: str | None = None, twin: str | None = None, quick: bool = False, **keys: Any
) -> Case:
    own, needs = _PRECISIONS[precision]
    lora = {"lora_rank": 8} if keys.get("finetuning_type", "lora") == "lora" else {}
    every = {**_BASE, **keys, **own, **lora}
    return Case(name=name, keys=every, precision=precision, feature=feature or needs, twin=twin or name, quick=quick)


def _stage(stage: str, kind: str, precision: str, *, quick: bool = False) -> Case:
    keys = {"stage": stage, **_STAGES[stage], "finetuning_type": kind, **_TYPES[kind]}
    return _case(f"{stage}-{kind}-{precision}", precision=precision, twin=f"{stage}-{kind}-fp32", quick=quick, **keys)


def _method(name: str, *, feature: str | None = None, twin: str | None = None, quick: bool = False, **keys: Any) -> Case:
    return _case(f"sft-{name}", feature=feature, twin=twin and f"sft-{twin}", quick=quick, **keys)


def _set() -> tuple[Case, ...]:
    quick = {("sft", "full"), ("pt", "lora"), ("sft", "lora"), ("dpo", "lora"), ("kto", "lora"), ("orpo", "lora")}
    stages = [_stage(stage, kind, "fp32", quick=(stage, kind) in quick) for stage in _STAGES for kind in _TYPES]
    precisions = [
        _stage("sft", "full", "bf16", quick=True), _stage("sft", "lora", "bf16"), _stage("sft", "freeze", "bf16"),
        _stage("pt", "full", "bf16"),
        _stage("sft", "full", "pure_bf16"), _stage("sft", "full", "fp16"), _stage("sft", "lora", "fp16"), _stage("dpo", "lora", "bf16"),
        _stage("kto", "lora", "bf16"), _stage("orpo", "full", "bf16"), _stage("simpo", "lora", "bf16"),
    ]  # fmt: skip
    models = [
        _case(f"sft-{kind}-fp32-{model}", finetuning_type=kind, **_TYPES[kind], model_name_or_path=f"builtin/tiny-{model}",
              quick=kind == "lora")
        for model in ARCHITECTURES if model != "llama" for kind in ("lora", "full")
    ]  # fmt: skip
    methods = [
        _method("qlora-4bit", feature="bnb_4bit", quantization_bit=4, quick=True),
        _method("qlora-8bit", feature="bnb_8bit", quantization_bit=8),
        _method("full-zero2", feature="deepspeed", twin="full-fp32", finetuning_type="full", **_TYPES["full"], deepspeed="zero2.json"),
        _method("full-zero3", feature="deepspeed", twin="full-fp32", finetuning_type="full", **_TYPES["full"], deepspeed="zero3.json"),
        _method("full-fsdp2", feature="fsdp2", twin="full-fp32", finetuning_type="full", **_TYPES["full"], fsdp="full_shard auto_wrap",
                fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}),
        _method("lora-liger", feature="liger", twin="lora-fp32", enable_liger_kernel=True),
        _method("lora-flash-attention", feature="flash_attention", flash_attn="fa2", bf16=True),
        _method("lora-packed", packing=True), _method("lora-neat-packed", neat_packing=True),
        _method("rslora", use_rslora=True), _method("dora", use_dora=True), _method("lora-plus", loraplus_lr_ratio=8.0),
        _method("pissa", pissa_init=True), _method("oft", finetuning_type="oft"), _method("neftune", neftune_noise_alpha=5.0),
        _method("muon", finetuning_type="full", use_muon=True), _method("dft", use_dft_loss=True),
        _method("accumulated", gradient_accumulation_steps=2, per_device_train_batch_size=2, twin="lora-fp32"),
    ]  # fmt: skip
    real = _case(
        "sft-lora-fp32-smollm2-135m", model_name_or_path="builtin/smollm2-135m", template="chatml", max_steps=4, learning_rate=1e-3,
        per_device_train_batch_size=2,
    )  # fmt: skip
    return (*stages, *precisions, *models, *methods, real)


CASES: Final = _set()


def chosen(pattern: str | None, *, quick: bool) -> tuple[Case, ...]:
    """The cases whose name holds the pattern (or matches it, with `*`). UsageError where none does."""
    cases = [case for case in CASES if case.quick or not quick]
    if pattern is None:
        return tuple(cases)
    found = tuple(c for c in cases if pattern in c.name or fnmatch(c.name, pattern))
    if not found:
        near = get_close_matches(pattern, [case.name for case in cases], 1, 0.3)
        raise UsageError(f"no case of fl conform is called {pattern!r}", f"--only {near[0]}" if near else "fl conform --list")
    return found


def declared(case: Case, stack: Stack) -> bool | None:
    """Whether a stack claims what a case needs; None: nobody has checked."""
    value = True if case.feature is None else stack.features.get(case.feature)
    return None if value is None else value not in (False, "none")


def not_covered(stack: Stack) -> list[str]:
    """Features that a stack claims and no case stands for."""
    covered = {case.feature for case in CASES}
    return [name for name, value in stack.features.items() if value not in (None, False, "none") and name not in covered]


def files() -> dict[str, str]:
    """The data and settings that lie beside the recipes, by name."""
    sums = [{"instruction": f"What is {a} plus {b}?", "input": "", "output": f"It is {a + b}."} for a in range(2, 8) for b in range(2, 8)]
    text = [{"text": " ".join(f"{n} comes before {n + 1}." for n in range(start, start + 12))} for start in range(1, 49)]
    pairs = [{"instruction": row["instruction"], "input": "", "chosen": row["output"], "rejected": "I do not know."} for row in sums]
    marks = [{**row, "kto_tag": bool(n % 2), "output": row["output"] if n % 2 else "I do not know."} for n, row in enumerate(sums)]
    zero = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    info = {
        "sums": {"file_name": "sums.json"}, "text": {"file_name": "text.json", "columns": {"prompt": "text"}},
        "pairs": {"file_name": "pairs.json", "ranking": True,
                  "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}},
        "marks": {"file_name": "marks.json",
                  "columns": {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "kto_tag"}},
    }  # fmt: skip
    made: dict[str, Any] = {
        "data/dataset_info.json": info, "data/sums.json": sums, "data/text.json": text, "data/pairs.json": pairs, "data/marks.json": marks,
        "zero2.json": {**zero, "zero_optimization": {"stage": 2}}, "zero3.json": {**zero, "zero_optimization": {"stage": 3}},
    }  # fmt: skip
    return {name: json.dumps(value, indent=1) + "\n" for name, value in made.items()}
