"""Losses of sft beside cross-entropy: DFT, ASFT and EAFT. Logits are shifted here; label IGNORE counts nothing.

Each divides by the labels that the whole step counts (`items`), or by those of this batch where the Trainer does not say.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from fl_trainers.config import Config
from fl_trainers.data.encode import IGNORE

TOP = 20
"""Tokens over which EAFT takes the entropy; a uniform one over them is log(20), about 3, by which it is scaled to 1."""
SCALE = 3.0


def chosen(config: Config) -> Callable[..., Any] | None:
    """The loss that the recipe asks for, as the Trainer calls it; None: the model's own cross-entropy."""
    method = config.method
    if method.use_dft_loss:
        return lambda outputs, labels, num_items_in_batch=None: dft(outputs["logits"], labels, num_items_in_batch)
    if method.use_eaft_loss:
        return lambda outputs, labels, num_items_in_batch=None: eaft(outputs["logits"], labels, num_items_in_batch, method.eaft_alpha)
    return None


def dft(logits: Any, labels: Any, items: Any = None) -> Any:
    """Each token's cross-entropy times the probability that the model gives it now, which takes part as a number."""
    losses, _, _ = _counted(logits, labels)
    return _mean(losses * torch.exp(-losses.detach()), items)


def eaft(logits: Any, labels: Any, items: Any = None, alpha: float = 1.0) -> Any:
    """Each token's cross-entropy times how unsure the model is there: the entropy over its likeliest tokens, scaled, to the power alpha."""
    losses, rows, _ = _counted(logits, labels)
    with torch.no_grad():
        best = torch.topk(rows, k=min(TOP, rows.shape[-1]), dim=-1).values.log_softmax(-1)
        weight = (-(best.exp() * best).sum(-1) / SCALE) ** alpha
    return _mean(losses * weight, items)


def asft(logits: Any, anchor: Any, labels: Any, items: Any = None, alpha: float = 0.1) -> Any:
    """DFT, plus alpha times the divergence of the model from the one it began as (KL, the anchor's probabilities as weights)."""
    losses, rows, places = _counted(logits, labels)
    before = anchor[:, :-1].reshape(-1, anchor.shape[-1])[places].float().log_softmax(-1)
    divergence = functional.kl_div(rows.log_softmax(-1), before, reduction="none", log_target=True).sum(-1)
    return _mean(losses * torch.exp(-losses.detach()) + alpha * divergence, items)


def _counted(logits: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Of the places that count: cross-entropies, logits in float32, and which places they are."""
    targets = labels[:, 1:].reshape(-1).to(logits.device)
    places = targets != IGNORE
    rows = logits[:, :-1].reshape(-1, logits.shape[-1])[places].float()
    return functional.cross_entropy(rows, targets[places], reduction="none"), rows, places


def _mean(losses: Any, items: Any) -> Any:
    count = max(losses.numel(), 1) if items is None else items.to(losses.device) if torch.is_tensor(items) else items
    return losses.sum() / count


class Anchor:
    """The model as it was before training, for ASFT: with its adapter switched off, or a copy."""

    def __init__(self, model: Any, *, adapter: bool) -> None:
        """adapter: the model without its adapter is the model as it was."""
        self.model, self.adapter = model, adapter
        if not adapter:
            self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def logits(self, inputs: dict[str, Any]) -> Any:
        """Of the batch, without gradients."""
        given = {key: value for key, value in inputs.items() if key != "labels"}
        return self.asked(inputs["input_ids"].device, lambda model: model(**given).logits)

    def asked(self, device: Any, question: Callable[[Any], Any]) -> Any:
        """What the model answers on the device, without gradients."""
        if not self.adapter and next(self.model.parameters()).device != device:
            self.model.to(device)
        off = self.model.disable_adapter() if self.adapter else contextlib.nullcontext()
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), off:
                return question(self.model)
        finally:
            self.model.train(training)
