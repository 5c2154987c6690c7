"""A config and a stack → the config as that stack can run it, with every change named. Pure.

Nothing here knows lanes: what counts are the row's features (null: not known, so nothing is changed) and what the device computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fl.errors import RecipeError
from fl.hardware import Accelerator, Cpu
from fl.matrix import Matrix, Stack
from fl.plan import Adaptation
from fl_trainers.config import Config

_WITHOUT_BF16: Final = frozenset(
    {"sm_50", "sm_52", "sm_53", "sm_60", "sm_61", "sm_62", "sm_70", "sm_72", "sm_75", "ascend910", "ascend310p"}
)
"""Chips whose units have no bf16; torch emulates it there or refuses."""
_CPU_BF16: Final = frozenset({"avx512_bf16", "amx_bf16"})
_TRACKERS: Final[Mapping[str, str]] = {
    "comet_ml": "comet-ml", "clearml": "clearml", "dvclive": "dvclive", "neptune": "neptune", "codecarbon": "codecarbon",
    "dagshub": "dagshub",
}  # fmt: skip
"""Those that no stack has as an extra (extras.py): nothing but an interpreter of the user's brings them."""
_OPTIMIZER_PACKAGES: Final[tuple[tuple[str, str], ...]] = (
    ("lomo", "lomo-optim"), ("adalomo", "lomo-optim"), ("grokadamw", "grokadamw"),
    ("schedule_free", "schedulefree"), ("stable_adamw", "torch-optimi"), ("adamw_anyprecision", "torchdistx"),
    ("adamw_torch_4bit", "torchao"), ("adamw_torch_8bit", "torchao"), ("adamw_torch_npu", "torch-npu"), ("adamw_torch_xla", "torch-xla"),
)  # fmt: skip
_MUON_SINCE: Final = "2.9"
"""The first torch whose documentation has torch.optim.Muon."""
_BNB_OPTIMIZERS: Final = ("8bit", "paged_", "rmsprop_bnb", "lion_32bit", "ademamix")


@dataclass(frozen=True, slots=True)
class Precision:
    """What the chosen devices compute in natively. None: not known."""

    bf16: bool | None = None
    fp16: bool | None = None


def precision(chosen: Sequence[Accelerator], cpu: Cpu) -> Precision:
    """Of the chosen accelerators; of the processor when there are none (bf16 without AVX512-BF16 or AMX is emulated)."""
    if not chosen:
        return Precision(bf16=bool(_CPU_BF16 & set(cpu.features)), fp16=False)
    arches = {a.arch for a in chosen}
    return Precision(bf16=False if arches & _WITHOUT_BF16 else None if None in arches else True, fp16=True)


@dataclass(frozen=True, slots=True)
class _Case:
    """What the rules look at."""

    config: Config
    stack: Stack
    numbers: Precision
    model_known: bool | None
    packages: Collection[str] | None
    stacks: Sequence[Stack]
    quantized: str | None = None

    def lacks(self, feature: str) -> bool:
        """True only where the row says so."""
        return self.stack.features.get(feature) in (False, "none")

    def without(self, package: str) -> bool:
        """True where the row's packages are known and this one is not among them."""
        return self.packages is not None and package not in self.packages

    def refusal(self, key: str, what: str, feature: str) -> RecipeError:
        """The error for what this row cannot do at all."""
        able = sorted({s.lane for s in self.stacks if s.features.get(feature) not in (False, None, "none")})
        return RecipeError(
            f"{key}: the stack {self.stack.id} has no {what}. "
            + (f"Lanes that have it: {', '.join(able)}." if able else "No lane has it."),
            f"fl run --hw {able[0]} RECIPE, or without {key}" if able else f"fl run RECIPE without {key}",
        )


Change = tuple[Adaptation, dict[str, Any]]
"""What is said, and new values by dotted field of the config."""


def adapt(
    config: Config,
    stack: Stack,
    numbers: Precision,
    *,
    model_known: bool | None = None,
    packages: Collection[str] | None = None,
    stacks: Sequence[Stack] = (),
    quantized: str | None = None,
) -> tuple[Config, tuple[Adaptation, ...]]:
    """The config for this stack and these devices, and what was changed. RecipeError for what cannot be adapted.

    `model_known`: the row's transformers has the model type itself. `packages`: distributions of the environment, None where
    it is not the row's own. `stacks`: all rows, to name those that could. `quantized`: how the checkpoint was,
    where that is known.
    """
    case = _Case(config, stack, numbers, model_known, packages, stacks, quantized)
    changes = [change for rule in _RULES for change in rule(case)]
    document = config.model_dump()
    for _, fields in changes:
        for field, value in fields.items():
            _set(document, field.split("."), value)
    return Config.model_validate(document), tuple(adaptation for adaptation, _ in changes)


def strict_check(adaptations: Sequence[Adaptation]) -> None:
    """For `--strict`: RecipeError when an adaptation changes the numbers."""
    touched = [a for a in adaptations if a.effect == "numerics"]
    if touched:
        lines = "\n".join(f"  {a.key}: {a.before} → {a.after}: {a.reason}" for a in touched)
        said = " ".join(f"{a.key}={_word(a.after)}" for a in touched)
        raise RecipeError(f"--strict: this machine cannot compute what the recipe says:\n{lines}", f"fl run --strict RECIPE {said}")


def model_known(matrix: Matrix, stack: Stack, model_type: str | None) -> bool | None:
    """Whether the row's transformers has a class for this model type; None when the type is not known."""
    from packaging.version import Version

    if model_type is None:
        return None
    known = matrix.model_type(model_type)
    ours = matrix.packages(stack).get("transformers")
    return known is not None and known.transformers is not None and ours is not None and Version(known.transformers) <= Version(ours)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _set(document: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        document = document[part]
    if value is None and path[-2:-1] == ["arguments"]:
        document.pop(path[-1], None)
    else:
        document[path[-1]] = value


def _attention(case: _Case) -> Iterator[Change]:
    wanted = case.config.model.attention
    has = case.stack.features.get("flash_attention")
    if wanted in ("fa2", "fa3") and (has in (False, "none") or (wanted == "fa3" and has == "wheel")):
        reason = f"{case.stack.id} has no FlashAttention {wanted[-1]}; torch's own attention computes the same"
        yield Adaptation(key="flash_attn", before=wanted, after="sdpa", reason=reason, effect="speed"), {"model.attention": "sdpa"}


def _precision(case: _Case) -> Iterator[Change]:
    arguments = case.config.training.arguments
    without_bf16 = case.lacks("bf16") or case.numbers.bf16 is False
    without_fp16 = case.lacks("fp16") or case.numbers.fp16 is False
    for key, missing in (
        ("bf16", without_bf16),
        ("bf16_full_eval", without_bf16),
        ("fp16", without_fp16),
        ("fp16_full_eval", without_fp16),
    ):
        if missing and arguments.get(key):
            reason = f"the device has no fast {key[:4]}; computed in fp32"
            yield Adaptation(key=key, before=True, after=False, reason=reason, effect="numerics"), {f"training.arguments.{key}": False}
    if without_bf16 and case.config.method.pure_bf16:
        reason = "the device has no fast bf16; weights are kept and trained in fp32"
        yield Adaptation(key="pure_bf16", before=True, after=False, reason=reason, effect="numerics"), {"method.pure_bf16": False}
    if arguments.get("tf32") and ("cuda" not in case.stack.runtime or without_bf16):
        reason = "the device has no TF32; matrix products are computed in full fp32"
        yield Adaptation(key="tf32", before=True, after=None, reason=reason, effect="numerics"), {"training.arguments.tf32": None}


def _quantization(case: _Case) -> Iterator[Change]:
    quantization = case.config.model.quantization
    if quantization is not None and case.lacks(f"bnb_{quantization.bits}bit"):
        raise case.refusal(f"quantization_bit: {quantization.bits}", "bitsandbytes that works", f"bnb_{quantization.bits}bit")
    yield from ()


def _sharding(case: _Case) -> Iterator[Change]:
    arguments = case.config.training.arguments
    if arguments.get("deepspeed") and (case.lacks("deepspeed") or case.without("deepspeed")):
        raise case.refusal("deepspeed", "DeepSpeed", "deepspeed")
    if arguments.get("fsdp") and case.lacks("fsdp2"):
        raise case.refusal("fsdp", "FSDP", "fsdp2")
    yield from ()


def _liger(case: _Case) -> Iterator[Change]:
    if case.config.model.liger and (case.lacks("liger") or case.without("liger-kernel")):
        reason = f"{case.stack.id} has no Liger kernels; the model's own layers compute the same"
        yield Adaptation(key="enable_liger_kernel", before=True, after=False, reason=reason, effect="speed"), {"model.liger": False}


def _remote_code(case: _Case) -> Iterator[Change]:
    if case.config.model.trust_remote_code and case.model_known:
        reason = "transformers has this model itself, so code that came with the weights is not run"
        yield (
            Adaptation(key="trust_remote_code", before=True, after=False, reason=reason, effect="none"),
            {"model.trust_remote_code": False},
        )


def _trackers(case: _Case) -> Iterator[Change]:
    wanted = case.config.training.arguments.get("report_to") or []
    missing = [name for name in wanted if name in _TRACKERS and case.without(_TRACKERS[name])]
    if missing:
        rest = [name for name in wanted if name not in missing] or ["none"]
        reason = f"{', '.join(missing)} is not installed in {case.stack.id}; losses are in trainer_log.jsonl and training_loss.png"
        yield Adaptation(key="report_to", before=wanted, after=rest, reason=reason, effect="none"), {"training.arguments.report_to": rest}


def _optimizer(case: _Case) -> Iterator[Change]:
    name = case.config.training.arguments.get("optim")
    if not isinstance(name, str):
        return
    package = next((package for prefix, package in _OPTIMIZER_PACKAGES if name.startswith(prefix)), None)
    if package is None and not name.startswith(("galore_", "apollo_")) and any(part in name for part in _BNB_OPTIMIZERS):
        package = "bitsandbytes"
    if package is None or not case.without(package):
        return
    if package in ("bitsandbytes", "torch-npu"):
        effect: Any = "numerics" if package == "bitsandbytes" else "speed"
        reason = f"{case.stack.id} has no {package}, which {name} needs"
        yield (
            Adaptation(key="optim", before=name, after="adamw_torch", reason=reason, effect=effect),
            {"training.arguments.optim": "adamw_torch"},
        )
        return
    raise RecipeError(f"optim: {name} needs the package {package}, which {case.stack.id} does not have.", "optim: adamw_torch")


def _older(found: str, wanted: str) -> bool:
    from packaging.version import Version

    return Version(found) < Version(wanted)


def _muon(case: _Case) -> Iterator[Change]:
    torch = case.stack.train.get("torch")
    if case.config.method.use_muon and case.packages is not None and torch and _older(torch, _MUON_SINCE):
        raise RecipeError(f"use_muon needs torch {_MUON_SINCE}; {case.stack.id} has torch {torch}.", "another stack, or without use_muon")
    yield from ()


def _rollout(case: _Case) -> Iterator[Change]:
    """vLLM beside the trainer: its own torch must be the row's."""
    method = case.config.method
    if method.stage == "grpo" and method.grpo.backend == "vllm" and case.without("vllm"):
        having = [stack.id for stack in case.stacks if stack.lane == case.stack.lane and stack.train.get("vllm")]
        raise RecipeError(
            f"rollout_backend: vllm needs the package vllm, which {case.stack.id} does not have.",
            "\n".join([*(f"--stack {name}" for name in having), "rollout_backend: transformers, which every stack has"]),
        )
    yield from ()


CHECKPOINTS: Final[Mapping[str, str]] = {"awq": "gptqmodel", "gptq": "gptqmodel", "aqlm": "aqlm"}
"""Ways of quantizing whose checkpoints transformers loads with a package only."""


def _checkpoint(case: _Case) -> Iterator[Change]:
    package = CHECKPOINTS.get(case.quantized or "")
    if package is not None and case.without(package):
        raise RecipeError(
            f"model_name_or_path: {case.config.model.name} is an {str(case.quantized).upper()} checkpoint, which needs the package "
            f"{package}, and {case.stack.id} does not have it.",
            "the model unquantized, with `quantization_bit: 4`",
        )
    yield from ()


_RULES: Final[tuple[Callable[[_Case], Iterator[Change]], ...]] = (
    _checkpoint, _attention, _precision, _quantization, _sharding, _liger, _remote_code, _trackers, _optimizer, _muon, _rollout,
)  # fmt: skip
