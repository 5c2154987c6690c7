"""Which fast parts a run takes. Pure: a function of the config, the model's own settings and what the device is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fl_trainers import sharding
from fl_trainers.config import Config

TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma3_text", "phi3", "glm", "glm4", "olmo", "olmo2", "olmo3", "ernie4_5",
    "exaone4", "hunyuan_v1_dense", "starcoder2", "arcee", "apertus", "helium", "granite", "cohere", "cohere2",
    "qwen3_moe", "qwen2_moe", "mixtral", "olmoe",
)  # fmt: skip
"""Model types whose layers are attention, norms, linear layers and experts only, each tried against its padded batches.

Attention may have windows; others mix tokens of one row in ways that know no borders of documents (convolutions, linear attention).
"""
MEASURED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Of them those that were trained with compiled kernels on a card."""
OWN = (
    "attn_logit_softcapping", "final_logit_softcapping", "attention_dropout", "use_bidirectional_attention",
)  # fmt: skip
"""Settings by which a model has scores, logits or attention that these steps have not."""
PAIRS = ("dpo", "orpo", "simpo", "kto", "rm")
"""Stages whose loss compares rows, each without its padding."""
GRAPH_STEPS = 40
"""Steps from which capturing graphs pays for itself (about 0.8 s a length on an H100, 0.15 s gained a step)."""
GRAPH_COMPILE_STEPS = 1500
"""Steps from which kernels are worth compiling for graphs: 10 s at the first step, 0.006 s gained a step (8B, an H200)."""
GRAPH_COMPILED_STEPS = 200
"""The same where an earlier run has left them compiled: loading them takes 2 s, and up to 0.016 s is gained a step."""
SPENT = 0.9
"""Share of the memory that was freed which mode `memory` spends on layers that are not recomputed."""
LOGIT_OF_PAIRS = 14
"""Bytes of a logit where answers are compared: as made, in float32, its logarithm and its gradient."""
NOTHING = "nothing recomputed"
GRAPH_TOKENS = 8192
"""Tokens a batch may hold for graphs: above it the device is busy and launches cost nothing."""


@dataclass(frozen=True)
class Machine:
    """What the choice needs of the device."""

    type: str
    hip: bool = False
    capability: tuple[int, int] = (0, 0)
    free_bytes: int = 0
    """Of the device, less weights, gradients and the optimizer's state."""
    processes: int = 1
    liger: bool = False
    """Whether liger-kernel is installed and Triton can compile."""
    compiled: bool = False
    """Whether an earlier run has left the kernels compiled."""
    head: bool = True
    """Whether the model's head is one plain matrix, with no adapter on it or in its place."""


@dataclass(frozen=True)
class Load:
    """What is known of the run's rows."""

    tokens: int
    """Of the longest batch that can come."""
    steps: int


@dataclass(frozen=True)
class Fast:
    """The parts that are taken. `why` is one line for the log."""

    padding_free: bool = False
    graphs: bool = False
    recompute: bool = True
    keep: int = 0
    """Layers that are not recomputed though the others are: the last ones, whose activations are kept for the shortest time."""
    liger: bool = False
    """Compiled kernels for the loss, rope and SwiGLU: faster where the device is busy, some seconds at the first step."""
    why: str = "as the Trainer has it"


def choose(config: Config, settings: Any, machine: Machine, load: Load) -> Fast:
    """The parts for this run. settings: the model's own config."""
    made = _choose(config, settings, replace(machine, liger=machine.liger and settings.model_type in MEASURED), load)
    left = config.training.speed_without
    if not (made.padding_free and left):
        return made
    if "kept" in left:
        made = replace(made, recompute=config.model.gradient_checkpointing, keep=0)
    graphs = made.graphs and "graphs" not in left and not made.recompute
    return replace(made, graphs=graphs, liger=made.liger and "kernels" not in left, why=f"{made.why}; without {', '.join(left)}")


def _choose(config: Config, settings: Any, machine: Machine, load: Load) -> Fast:
    wanted = config.training.speed
    asked = config.model.gradient_checkpointing
    if wanted == "off":
        return Fast(recompute=asked, why="off: the recipe says so")
    if (reason := _obstacle(config, settings, machine)) is not None:
        return Fast(recompute=asked, why=f"padded batches: {reason}")
    if _experts(settings):  # which tokens go to which is not known before: no graphs, and no estimate of what layers keep
        return Fast(True, recompute=asked, why=f"no padding, logits where the loss counts, {'layers recomputed' if asked else NOTHING}")
    if config.method.stage in PAIRS:
        counted = "no logits" if config.method.stage == "rm" else "logits where answers count"
        keep, said = _kept(settings, _room_of_pairs(config, settings, machine, load), config, load) if asked else (0, NOTHING)
        return Fast(True, recompute=asked and said != NOTHING, keep=keep, why=f"no padding, {counted}, {said}")
    if wanted == "memory" or machine.type == "cpu":
        keep, said = _kept(settings, int(SPENT * freed(config, settings, load.tokens)), config, load) if asked else (0, NOTHING)
        liger = _liger(machine, load)
        why = f"no padding, logits where the loss counts, {said}"
        return Fast(True, recompute=asked and said != NOTHING, keep=keep, liger=liger, why=why)
    keep, said = _kept(settings, int(0.75 * machine.free_bytes), config, load) if asked else (0, NOTHING)
    recompute = said != NOTHING
    graphs, launch = False, "no graphs over recomputed layers"
    if not recompute:
        graphs, launch = _graphs(config, settings, machine, load, wanted == "speed")
    worth = load.steps >= (GRAPH_COMPILED_STEPS if machine.compiled else GRAPH_COMPILE_STEPS)
    liger = machine.liger and worth if graphs else _liger(machine, load)
    parts = ["no padding", "logits where the loss counts", said, launch, *(["compiled loss, rope and SwiGLU"] if liger else [])]
    return Fast(True, graphs, recompute, keep, liger, ", ".join(parts))


def _experts(settings: Any) -> bool:
    return any(getattr(settings, name, None) for name in ("num_experts", "num_local_experts"))


def _plain_weights(config: Config, settings: Any) -> bool:
    """Whether weights are plain, or of bitsandbytes' 4 bits, which are unpacked without waiting for the device."""
    found = getattr(settings, "quantization_config", None)
    if found is None:
        return config.model.quantization is None or config.model.quantization.bits == 4
    return bool(found.get("load_in_4bit") if isinstance(found, dict) else getattr(found, "load_in_4bit", False))


def _kept(settings: Any, room: int, config: Config, load: Load) -> tuple[int, str]:
    """How many layers need not be recomputed with so many bytes, and what the log says of it."""
    layers = settings.num_hidden_layers
    keep = min(layers, max(room, 0) * layers // max(activations(settings, load.tokens, _width(config)), 1))
    if keep == layers:
        return 0, NOTHING
    return keep, f"{layers - keep} of {layers} layers recomputed" if keep else "layers recomputed"


def _room_of_pairs(config: Config, settings: Any, machine: Machine, load: Load) -> int:
    """Bytes for layers that are not recomputed where rows are compared: on a card, where no second model stands beside the first."""
    method = config.method
    if config.training.speed == "memory" or machine.type == "cpu" or method.finetuning_type != "lora" or method.lora.pissa_init:
        return 0
    logits = 0 if method.stage == "rm" else LOGIT_OF_PAIRS * load.tokens * int(settings.vocab_size)
    return int(0.75 * machine.free_bytes) - logits


def _liger(machine: Machine, load: Load) -> bool:
    """Whether the batches are large enough, and the run long enough, for compiled kernels to pay."""
    return machine.liger and load.tokens >= GRAPH_TOKENS // 2 and load.steps >= 20


def _obstacle(config: Config, settings: Any, machine: Machine) -> str | None:
    """What keeps a run on the padded path; None: nothing does."""
    found = _of_model(config, settings) or _of_recipe(config, machine)
    return found if found or config.training.speed != "auto" else _of_device(config, machine)


def _of_model(config: Config, settings: Any) -> str | None:
    if config.method.stage not in ("sft", "pt", *PAIRS):
        return f"stage {config.method.stage} has a loop of its own"
    if config.method.stage in PAIRS and (config.model.quantization or getattr(settings, "quantization_config", None)):
        return f"stage {config.method.stage} with quantized weights: the model and its reference must round alike"
    if settings.model_type not in TYPES:
        return f"{settings.model_type} is not among {', '.join(TYPES)}"
    for name in OWN:
        if getattr(settings, name, None):
            return f"the model has {name} {getattr(settings, name)}"
    if config.method.stage in PAIRS and getattr(settings, "output_router_logits", False):
        return "the model adds the loss that keeps experts evenly used (moe_aux_loss_coef: 0 leaves it out)"
    return None


def _of_recipe(config: Config, machine: Machine) -> str | None:
    if config.method.stage in PAIRS and config.method.reference is not None:
        return f"stage {config.method.stage} does without padding only with the model as its own reference"
    if config.model.attention not in ("auto", "sdpa"):
        return f"flash_attn: {config.model.attention} is asked for"
    if config.model.liger:
        return "liger's own loss is asked for"
    if (sharded := sharding.spreads_weights(config)) is not None:
        return f"{sharded} spreads the head's weights"
    for name in ("label_smoothing_factor", "use_liger_kernel", "torch_compile", "neftune_noise_alpha"):
        if config.training.arguments.get(name):
            return f"{name} is set"
    for name in ("use_dft_loss", "use_asft_loss", "use_eaft_loss"):
        if getattr(config.method, name):
            return f"{name} is set"
    if not machine.head:
        return "the head is no plain matrix"
    if machine.processes > 1 and _sent_around(config):
        return "dispatch_batches: batches are made by one process and sent around row by row"
    if not config.data.ignore_pad_token_for_loss:
        return "padding counts in the loss"
    if config.method.badam is not None:
        return "BAdam trains other layers from time to time"
    return None


def _sent_around(config: Config) -> bool:
    """Whether one process makes the batches of all: it cuts them into rows, which a batch without padding is not."""
    return bool((config.training.arguments.get("accelerator_config") or {}).get("dispatch_batches")) and not config.data.streaming


def _of_device(config: Config, machine: Machine) -> str | None:
    if machine.type == "cpu":
        return None
    if machine.type != "cuda" or machine.hip:
        return f"on {'ROCm' if machine.hip else machine.type} nobody has measured a gain"
    if machine.capability < (8, 0):
        return "flash attention needs sm_80"
    arguments = config.training.arguments
    if not (config.method.pure_bf16 or arguments.get("bf16") or arguments.get("fp16")):
        return "flash attention computes in bf16 or fp16"
    return None


def _graphs(config: Config, settings: Any, machine: Machine, load: Load, asked_for: bool) -> tuple[bool, str]:
    """Whether steps are replayed from graphs, and what the log says of it."""
    method = config.method
    if machine.type != "cuda" or machine.hip:
        return False, "no graphs on this device"
    if settings.model_type not in MEASURED:
        return False, f"no graphs: nobody has tried them with {settings.model_type}"
    if method.finetuning_type == "oft" or method.lora.dora or not _plain_weights(config, settings):
        return False, "no graphs with this method"
    if config.training.arguments.get("fp16"):
        return False, "no graphs with a loss scaler"
    if config.training.arguments.get("deepspeed"):
        return False, "no graphs with DeepSpeed"
    if config.data.packing or config.data.neat_packing or load.tokens > 2 * GRAPH_TOKENS:
        return False, "no graphs: long batches keep the device busy"
    if not asked_for and machine.processes > 1:
        return False, "no graphs: with several processes nobody has measured them (fl: {speed: speed} takes them)"
    if not asked_for and load.steps < GRAPH_STEPS:
        return False, f"no graphs: they pay from {GRAPH_STEPS} steps"
    return True, "steps replayed as graphs"


def _width(config: Config) -> int:
    """Bytes of a number that is kept. With weights trained in float32 under autocast some are of 4 and some of 2 bytes."""
    arguments = config.training.arguments
    if config.method.pure_bf16:
        return 2
    if not (arguments.get("bf16") or arguments.get("fp16")):
        return 4
    return 2 if config.method.finetuning_type in ("lora", "oft") else 3


def freed(config: Config, settings: Any, tokens: int) -> int:
    """Bytes that are not needed because the logits of a batch never stand there at once.

    Padded batches hold the logits, a copy and its gradient in float32, and in 16 bits the logits as they were made: 10.4 bytes each
    were measured of LLaMA-Factory on an H100 (8B model, 4 packs of 2048).
    """
    return tokens * int(settings.vocab_size) * (8 if _width(config) == 4 else 10)


def activations(settings: Any, tokens: int, width: int = 2) -> int:
    """Bytes that a batch keeps for the backward pass without recomputation.

    9 vectors of the hidden size and 3 of the feed-forward's a layer: 5.1 MB a token for an 8B model, where 4.2 to 4.8 were measured.
    """
    inner = getattr(settings, "intermediate_size", 4 * settings.hidden_size)
    return int(width * tokens * settings.num_hidden_layers * (9 * settings.hidden_size + 3 * inner))
