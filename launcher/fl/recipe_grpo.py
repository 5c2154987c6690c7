"""Keys of stage grpo, which LLaMA-Factory does not have: named as in TRL. Part of recipe_table.py's table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl.recipe_keys import Key, nearest

if TYPE_CHECKING:
    from fl_trainers.config import Grpo

Get = Callable[[str], Any]
_GRPO = ("stage", ("grpo",), "stage: grpo")
REWARDS: Final = ("exact", "contains", "number", "think_format", "brief")
"""Functions that the trainer brings."""
_JUDGED = ("stage", ("grpo", "ppo"), "stage: grpo and ppo")

GRPO: Final = (
    Key(name="reward_funcs", kind="names", needs=_JUDGED, about=f"{', '.join(REWARDS)}, or FILE.py:FUNCTION."),
    Key(name="reward_weights", kind="floats", needs=_JUDGED, about="Weight of each reward; 1 if not set."),
    Key(name="num_generations", kind="int", default=8, low=2, needs=_GRPO, about="Completions of each question, which are compared."),
    Key(name="max_completion_length", kind="int", default=256, low=1, needs=_GRPO, about="Longest completion, in tokens."),
    Key(name="rollout_temperature", kind="float", default=1.0, above=0, needs=_GRPO, about="Temperature of the completions."),
    Key(name="rollout_backend", kind="str", default="transformers", choices=("transformers", "vllm"), needs=_GRPO,
        about="What makes the completions; vllm: a stack that has it, such as cuda130-torch213-rollout."),
    Key(name="rollout_memory", kind="float", default=0.3, above=0, needs=("rollout_backend", ("vllm",), "rollout_backend: vllm"),
        about="Share of the device's memory that vLLM takes."),
    Key(name="grpo_beta", kind="float", default=0.0, low=0, needs=_GRPO, about="Weight of the distance to the model as it was; 0: none."),
    Key(name="epsilon", kind="float", default=0.2, above=0, needs=_GRPO, about="How far a ratio may go before it is clipped."),
    Key(name="epsilon_high", kind="float", above=0, needs=_GRPO, about="The same upwards; as epsilon if not set."),
    Key(name="num_iterations", kind="int", default=1, low=1, needs=_GRPO, about="Updates on the same completions."),
    Key(name="grpo_loss", kind="str", default="dapo", choices=("grpo", "dapo", "bnpo", "dr_grpo"), needs=_GRPO,
        about="How token losses are averaged."),
    Key(name="scale_rewards", kind="str", default="group", choices=("group", "batch", "none"), needs=_GRPO,
        about="What rewards are divided by."),
    Key(name="mask_truncated_completions", kind="bool", default=False, needs=_GRPO, about="Completions without an end do not count."),
)


def fields(get: Get, cwd: Path) -> Grpo:
    """The config's part. Files of reward functions become absolute."""
    from fl_trainers.config import Grpo

    return Grpo(
        reward_funcs=tuple(_absolute(name, cwd) for name in get("reward_funcs") or ()),
        reward_weights=tuple(get("reward_weights") or ()),
        num_generations=get("num_generations"),
        max_completion_length=get("max_completion_length"),
        temperature=get("rollout_temperature"),
        backend=get("rollout_backend"),
        memory=get("rollout_memory"),
        beta=get("grpo_beta"),
        epsilon=get("epsilon"),
        epsilon_high=get("epsilon_high"),
        num_iterations=get("num_iterations"),
        loss_type=get("grpo_loss"),
        scale_rewards=get("scale_rewards"),
        mask_truncated_completions=get("mask_truncated_completions"),
    )


def _absolute(name: str, cwd: Path) -> str:
    path, colon, function = name.rpartition(":")
    return f"{(cwd / Path(path).expanduser()).resolve()}:{function}" if colon else name


def unknown_rewards(functions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of no function that the trainer brings, of stages grpo and ppo."""
    for name in functions:
        if ":" not in name and name not in REWARDS:
            near = nearest(name, list(REWARDS))
            known = f"; did you mean `{near}`?" if near else f"; there are {', '.join(REWARDS)}, and FILE.py:FUNCTION"
            yield "reward_funcs", f"there is no reward {name!r}{known}"


def rule(get: Get) -> Iterator[tuple[str, str]]:
    """What does not fit together, by the key to change."""
    if get("stage") != "grpo":
        return
    functions, weights = get("reward_funcs") or (), get("reward_weights") or ()
    if not functions:
        yield "reward_funcs", "stage grpo needs something that judges answers: `reward_funcs: exact`, or FILE.py:FUNCTION"
    yield from unknown_rewards(functions)
    if weights and len(weights) != len(functions):
        yield "reward_weights", f"{len(weights)} weights for {len(functions)} reward functions"
    batch, steps = get("per_device_train_batch_size") or 8, get("gradient_accumulation_steps") or 1
    if batch * steps % get("num_generations"):
        yield "num_generations", (
            f"a step holds {batch} x {steps} completions (per_device_train_batch_size x gradient_accumulation_steps), which is no multiple "
            f"of {get('num_generations')}"
        )
    if get("rollout_backend") == "vllm":
        if str(get("model_name_or_path")).startswith("builtin/tiny-"):
            yield "rollout_backend", "vllm reads a model from its files, and the tiny built-in ones have none"
        if get("quantization_bit"):
            yield "rollout_backend", "vllm takes the trained weights as they are: not together with quantization_bit"
        if (get("rollout_memory") or 0) >= 1:
            yield "rollout_memory", "a share of the device's memory, below 1: the trained model needs the rest"
    for key in ("packing", "neat_packing", "compute_accuracy"):
        if get(key):
            yield key, "not with stage grpo: its rows are questions"
