"""What gives the answers of stage ppo their scores: a reward model, a reward adapter on the model itself, or reward functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from fl_trainers import others, rewards, sharding, value_head
from fl_trainers.config import Config
from fl_trainers.device import Device
from fl_trainers.errors import InputError
from fl_trainers.progress import Events, log

ADAPTER = "reward"
"""Name of the reward adapter beside the trained one."""
Row = dict[str, Any]
Judge = Callable[[list[Any], list[Row]], list[float | None]]
"""(whole texts as ids, rows with `prompt`, `completion`, `answer`) → one score a row; None leaves it out."""


def load(config: Config, model: Any, tokenizer: Any, device: Device, events: Events) -> Judge:
    """The judge that the recipe names. model: the one that is trained, without its value head."""
    ppo, given = config.method.ppo, config.method.grpo
    if ppo.reward_model is not None:
        return _model(config, tokenizer, device)
    if ppo.reward_adapter is not None:
        return _adapter(config, model, ppo.reward_adapter, tokenizer)
    if given.reward_funcs:
        return _functions(rewards.load(given.reward_funcs, events), given.reward_weights)
    raise InputError("reward_model: stage ppo needs something that judges answers", "reward_model: the output folder of a run of stage rm")


def _model(config: Config, tokenizer: Any, device: Device) -> Judge:
    other = config.method.ppo.reward_model
    if other is None:
        raise AssertionError("asked for a reward model that the config has not")
    key = "reward_model_adapters" if other.adapters else "reward_model"
    whole = value_head.Scorer(others.load(config, other, "reward_model", tokenizer, device), dropout=0.0)
    _fill(whole.v_head, key, other.adapters[-1] if other.adapters else other.path)
    place = whole.v_head.summary.weight.device
    whole = sharding.still(config, whole.eval().requires_grad_(False))
    return lambda texts, rows: whole(*_batch(texts, tokenizer.pad_token_id, place)).tolist()


def _adapter(config: Config, model: Any, folder: str, tokenizer: Any) -> Judge:
    """LLaMA-Factory's `reward_model_type: lora`: one base in memory, on which the reward adapter takes turns with the trained one."""
    try:
        _refuse_pissa(folder)
        model.load_adapter(folder, ADAPTER, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        found = next((line for line in lines if "size mismatch" in line), lines[0])
        raise InputError(f"reward_model: adapter {folder} does not fit {config.model.name}: {found}",
                         "an adapter that stage rm has trained on the same base") from error  # fmt: skip
    model.set_adapter("default")
    head = value_head.Head(value_head.width_of(model), dropout=0.0).eval().requires_grad_(False)
    _fill(head, "reward_model", folder)
    log.info("reward_model: adapter %s on the same base", folder)

    def judge(texts: list[Any], rows: list[Row]) -> list[float | None]:
        model.set_adapter(ADAPTER, inference_mode=True)
        try:
            ids, mask = _batch(texts, tokenizer.pad_token_id, texts[0].device)
            found: list[float | None] = value_head.score(model, head.to(ids.device), ids, mask).tolist()
            return found
        finally:
            model.set_adapter("default")

    return judge


def _refuse_pissa(folder: str) -> None:
    """To load such an adapter takes components out of the weights, on which the policy stands."""
    from peft import PeftConfig

    if str(getattr(PeftConfig.from_pretrained(folder), "init_lora_weights", "")).startswith("pissa"):
        raise InputError(f"reward_model: {folder} is a PiSSA adapter: to load it changes the weights on which the policy stands",
                         f"{folder}/pissa_converted, where `pissa_convert: true` was set, or reward_model_type: full")  # fmt: skip


def _fill(head: value_head.Head, key: str, source: str) -> None:
    """With the value head that lies in a folder."""
    if not value_head.load(head, source, key):
        raise InputError(
            f"{key}: {source} has no {value_head.FILE}: it is no reward model", f"{key}: the output folder of a run of stage rm"
        )


def _batch(texts: Sequence[Any], pad: int, place: Any) -> tuple[Any, Any]:
    """Padded on the right, with its mask."""
    ids = pad_sequence([text.to(place) for text in texts], batch_first=True, padding_value=pad)
    return ids, pad_sequence([torch.ones_like(text, device=place) for text in texts], batch_first=True)


def _functions(functions: Sequence[rewards.Reward], weights: Sequence[float]) -> Judge:
    """The weighted sum of the functions, as in stage grpo."""
    shares = list(weights) or [1.0] * len(functions)

    def judge(texts: list[Any], rows: list[Row]) -> list[float | None]:
        columns = {
            "prompts": [row["prompt"] for row in rows], "answer": [row["answer"] for row in rows],
            "completion_ids": [row["ids"] for row in rows],
            "completions": [[{"role": "assistant", "content": row["completion"]}] for row in rows],
        }  # fmt: skip
        found = [function(**columns) for function in functions]
        summed: list[float | None] = []
        for values in zip(*found, strict=True):
            known = [share * value for share, value in zip(shares, values, strict=True) if value is not None]
            summed.append(sum(known) if known else None)
        return summed

    return judge
