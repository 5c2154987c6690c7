"""Models beside the one that is trained, which stay as they are: a reference of the recipe's choice, a reward model."""

from __future__ import annotations

import importlib.util
import inspect
import os
from typing import Any

from fl_trainers import adapters, pissa, sharding, value_head
from fl_trainers import model as models
from fl_trainers.config import Config, Model, Other
from fl_trainers.device import Device
from fl_trainers.errors import InputError
from fl_trainers.losses import Anchor
from fl_trainers.progress import log


def load(config: Config, other: Other, key: str, tokenizer: Any, device: Device) -> Any:
    """The model in the run's dtype, on the run's device, without gradients. key: the recipe's, for messages.

    Both models are given the same token ids, so InputError where it was trained with another vocabulary.
    """
    if other.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{key}_quantization_bit needs the package bitsandbytes, which is not installed here", "leave it out")
    kept = config.model
    settings = Model(
        name=other.name, path=other.path, kind=other.kind, adapters=other.adapters, quantization=other.quantization,
        trust_remote_code=kept.trust_remote_code, attention=kept.attention, rope_scaling=kept.rope_scaling,
    )  # fmt: skip
    its_own = config.model_copy(update={"model": settings})
    if key == "reward_model":  # which does without a head for logits, as a sequence classifier has none
        its_own = its_own.model_copy(update={"method": config.method.model_copy(update={"stage": "rm"})})
    try:
        source = models.folder_of(its_own)
        _check_vocabulary(its_own, source, key, tokenizer)
        made, _ = models.load_model(its_own, source, tokenizer, device)
        made = adapters.standing(its_own, made)
    except InputError as error:
        raise InputError(f"{key}: {error.message}", error.remedy) from error
    made = made.eval().requires_grad_(False)
    log.info("%s: %s%s", key, other.name, f" with {', '.join(other.adapters)}" if other.adapters else "")
    return made if other.quantization is not None else made.to(_place(device))


def _place(device: Device) -> str:
    return "cpu" if device.type == "cpu" else f"{device.type}:{os.environ.get('LOCAL_RANK', '0')}"


def _check_vocabulary(config: Config, source: str, key: str, tokenizer: Any) -> None:
    """Tokens that both know must have the same ids, and each of ours must have a place in the other's embedding."""
    from transformers import AutoConfig, AutoTokenizer

    if config.model.kind == "tiny":  # made from the same texts
        return
    try:
        theirs = AutoTokenizer.from_pretrained(source, trust_remote_code=config.model.trust_remote_code).get_vocab()
    except (OSError, ValueError, KeyError):
        theirs = {}  # a folder of weights alone
    ours = tokenizer.get_vocab()
    apart = sorted(token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
    if apart:
        raise InputError(
            f"{config.model.name} has another vocabulary: {len(apart)} tokens have other ids there, {apart[0]!r} among them",
            f"{key}: a model of the same family as model_name_or_path",
        )
    settings = AutoConfig.from_pretrained(source, trust_remote_code=config.model.trust_remote_code)
    size = getattr(getattr(settings, "text_config", None) or settings, "vocab_size", None)
    if size is not None and size < len(tokenizer):
        raise InputError(
            f"{config.model.name} knows {size} tokens, the model that is trained {len(tokenizer)}",
            f"{key}: a model of the same family as model_name_or_path",
        )


class Reference(Anchor):
    """An Anchor that is another model than the one that is trained."""

    def __init__(self, model: Any) -> None:
        self.model, self.adapter = model, False
        self._takes = set(inspect.signature(value_head.plain(model).forward).parameters)

    def logits(self, inputs: dict[str, Any]) -> Any:
        """Of the batch. A model that cannot leave the first logits out gives them all."""
        return super().logits({name: value for name, value in inputs.items() if name in self._takes or name in ("input_ids",)})


def reference(config: Config, model: Any, tokenizer: Any, device: Device) -> Anchor:
    """What the model is compared with: the recipe's `ref_model`, itself without its adapter, or itself as it was.

    A model of its own is spread over the devices where the trained weights will be.
    """
    other = config.method.reference
    made: Anchor
    if other is None and pissa.beside(model):
        return Anchor(model, adapter=True)
    if other is not None:
        made = Reference(load(config, other, "ref_model", tokenizer, device))
    elif sharding.zero_stage(config) == 3:  # weights are spread from the start: there is nothing whole to copy
        again, _ = models.load_model(config, models.folder_of(config), tokenizer, device)
        made = Reference(again.eval().requires_grad_(False))
    else:
        made = Anchor(model, adapter=False)
        made.model.to(device.dtype)
    made.model = sharding.still(config, made.model)
    return made
