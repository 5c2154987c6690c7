"""Keys of other models beside the one that is trained (references, reward models) and of stage ppo. Part of recipe_table.py's table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from fl.recipe_grpo import unknown_rewards
from fl.recipe_keys import Key

Get = Callable[[str], Any]
_REFERRING: Final = ("dpo", "kto", "ppo")
_REFERS = ("stage", _REFERRING, "stage: dpo, kto and ppo")
_PPO = ("stage", ("ppo",), "stage: ppo")
SAMPLING: Final = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "repetition_penalty", "length_penalty")
"""Keys of generation, which stage ppo uses for its answers."""

REWARD: Final = (
    Key(name="ref_model", kind="str", needs=_REFERS, about="What the model is compared with; by default itself as it was."),
    Key(name="ref_model_adapters", kind="names", needs=_REFERS, about="Adapters on ref_model."),
    Key(name="ref_model_quantization_bit", kind="int", choices=(4, 8), needs=_REFERS, about="Load ref_model in 4 or 8 bits."),
    Key(name="reward_model", kind="str", needs=_PPO, about="A model, or an adapter, that stage rm has trained."),
    Key(name="reward_model_type", kind="str", default="lora", choices=("lora", "full", "api"), needs=_PPO,
        about="lora: reward_model is an adapter on the base of the one that is trained; full: a model of its own."),
    Key(name="reward_model_adapters", kind="names", needs=_PPO, about="Adapters on a full reward_model; the last one has the value head."),
    Key(name="reward_model_quantization_bit", kind="int", choices=(4, 8), needs=_PPO, about="Load a full reward_model in 4 or 8 bits."),
    Key(name="ppo_epochs", kind="int", default=4, low=1, needs=_PPO, about="How often the same answers are learned from."),
    Key(name="ppo_buffer_size", kind="int", default=1, low=1, needs=_PPO, about="Batches of answers that are learned from at once."),
    Key(name="ppo_score_norm", kind="bool", default=False, needs=_PPO, about="Scores less their running mean, by their deviation."),
    Key(name="ppo_target", kind="float", default=6.0, above=0, needs=_PPO, about="Distance to the reference that is aimed at."),
    Key(name="ppo_whiten_rewards", kind="bool", default=False, needs=_PPO, about="Rewards of all tokens by their deviation."),
)  # fmt: skip


def rule(get: Get) -> Iterator[tuple[str, str]]:
    """What does not fit together, by the key to change."""
    stage = get("stage")
    if stage in _REFERRING:
        yield from _references(get)
    if stage == "ppo":
        yield from _ppo(get)


def _references(get: Get) -> Iterator[tuple[str, str]]:
    if get("ref_model") and get("stage") == "dpo" and get("pref_loss") in ("orpo", "simpo"):
        yield "ref_model", f"pref_loss: {get('pref_loss')} compares with no reference"
    for key in ("ref_model_adapters", "ref_model_quantization_bit"):
        if get(key) and not get("ref_model"):
            yield key, "only with ref_model, on which it acts"


def _ppo(get: Get) -> Iterator[tuple[str, str]]:
    yield from _judge(get)
    if not get("do_train"):
        yield "do_train", "stage ppo does nothing but train: write `do_train: true`"
    if not get("do_sample"):
        yield "do_sample", "stage ppo learns from answers that differ, so it samples them"
    if not get("temperature"):
        yield "temperature", "above 0: stage ppo learns from answers that differ"
    for key in ("packing", "neat_packing", "compute_accuracy"):
        if get(key):
            yield key, "not with stage ppo: its rows are questions"


def _judge(get: Get) -> Iterator[tuple[str, str]]:
    """What the answers are judged by."""
    model, functions, kind = get("reward_model"), get("reward_funcs") or (), get("reward_model_type")
    if kind == "api":
        yield "reward_model_type", (
            "a server of rewards is not asked in this version: a training has no network unless it fetches something; write "
            "`reward_model_type: full`, or a function that asks it, as reward_funcs: FILE.py:FUNCTION"
        )
    elif model and functions:
        yield "reward_funcs", "one judge: not together with reward_model"
    elif not model and not functions:
        yield "reward_model", "missing: what judges the answers? The output folder of a run with `stage: rm`, or reward_funcs"
    elif model and kind == "lora" and get("finetuning_type") != "lora":
        yield "reward_model_type", (
            f"lora puts the reward adapter beside the one that is trained, which finetuning_type: {get('finetuning_type')} has not; "
            "write `reward_model_type: full`, with reward_model_adapters"
        )
    elif model and kind == "lora" and get("pissa_init"):
        yield "pissa_init", "takes components out of the base on which the reward adapter stands; write `reward_model_type: full`"
    for key in ("reward_model_adapters", "reward_model_quantization_bit"):
        if get(key) and (kind != "full" or not model):
            yield key, "only with `reward_model_type: full` and reward_model"
    yield from unknown_rewards(functions)
    weights = get("reward_weights") or ()
    if weights and len(weights) != len(functions):
        yield "reward_weights", f"{len(weights)} weights for {len(functions)} reward functions"
