"""One padding-free step: the model's body over all documents, the head where labels count, and the gradients."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from fl_trainers.data.encode import IGNORE
from fl_trainers.fast import attention, head


class Step:
    """Loss and gradients of flat batches. model: as the Trainer holds it, perhaps with an adapter; one process."""

    def __init__(self, model: Any, dtype: Any | None) -> None:
        """dtype: of autocast; None: none."""
        self.whole = model
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.body = getattr(self.causal, self.causal.base_model_prefix)
        self.head = self.causal.get_output_embeddings()
        self.dtype = dtype
        attention.register()

    def fits(self) -> bool:
        """Whether the head is one plain matrix."""
        return type(self.head) is torch.nn.Linear and self.head.bias is None

    def run(self, batch: dict[str, Any], count: Any, backward: Any = None) -> Any:
        """The mean loss over `count` labels (a number or a scalar on the device); gradients are added to the weights'."""
        targets = _next(batch["labels"])
        kept = torch.nonzero(targets[0] != IGNORE).squeeze(1)
        scale = (1.0 / torch.as_tensor(count, device=targets.device, dtype=torch.float32)).clamp(max=1.0)
        with attention.switched(self.causal.config):
            value = self.loss(batch, targets[0][kept], scale, kept)
            (backward or torch.Tensor.backward)(value)
        return value.detach()

    def loss(self, batch: dict[str, Any], targets: Any, scale: Any, kept: Any | None) -> Any:
        """The loss as a graph of autograd. kept: the places of the targets; None: they are all places."""
        with self._autocast():
            hidden = self.body(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False,
                cu_seq_lens_q=batch["borders"], cu_seq_lens_k=batch["borders"],
                max_length_q=batch["longest"], max_length_k=batch["longest"],
            ).last_hidden_state[0]  # fmt: skip
            return head.loss(hidden if kept is None else hidden[kept], self.head.weight, targets, scale)

    def _autocast(self) -> Any:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.causal.device.type, dtype=self.dtype, cache_enabled=not _capturing())


def _capturing() -> bool:
    return bool(torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _next(labels: Any) -> Any:
    """What each token must foretell: the label after it. The first label of a document is IGNORE already."""
    return torch.cat([labels[:, 1:], labels.new_full((labels.shape[0], 1), IGNORE)], dim=1)
