"""One padding-free step: the model's body over all documents, the head where labels count, and the gradients."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch

from fl_trainers.data.encode import IGNORE
from fl_trainers.fast import attention, head
from fl_trainers.fast.masters import Masters


class Step:
    """Loss and gradients of flat batches."""

    def __init__(
        self,
        model: Any,
        dtype: Any | None,
        *,
        outer: Any = None,
        ranks: int = 1,
        compiled: bool = False,
        whole: bool = False,
        masters: Masters | None = None,
    ) -> None:
        """model: perhaps with an adapter; dtype: of autocast, None: none.

        outer: what stands around the model and brings the gradients of all processes together (DDP, DeepSpeed's engine), None: nothing.
        ranks: processes over which gradients are averaged and labels are counted; compiled: the loss by a Triton kernel;
        whole: all logits at once, also where no label counts; masters: weights whose 16-bit copies are kept.
        """
        self.whole, self.outer, self.ranks = model, outer, ranks
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.body = getattr(self.causal, self.causal.base_model_prefix)
        self.head = self.causal.get_output_embeddings()
        self.dtype, self.compiled, self.whole_logits = dtype, compiled, whole
        self.masters, self.share = masters or Masters(), 1
        attention.register()

    def fits(self) -> bool:
        """Whether the head is one plain matrix."""
        return type(self.head) is torch.nn.Linear and self.head.bias is None

    def run(self, batch: dict[str, Any], count: Any, backward: Any = None, share: int = 1) -> Any:
        """The mean loss over `count` labels (a number or a scalar on the device); gradients are added to the weights'.

        share: among how many batches, of this process or of all, a batch's own mean is divided; `count` is of one of them then.
        A batch without labels gives 0, and gradients of 0 for every weight, so that no other process waits for them.
        """
        self.share = share
        targets, kept = batch["targets"], batch["kept"]
        with attention.switched(self.causal.config):
            given = (targets, None) if self.whole_logits else (targets[kept], kept)
            value = self._through(batch, given[0], self.scale(count * share, targets.device), given[1])
            (backward or torch.Tensor.backward)(value)
        return value.detach()

    def scale(self, count: Any, device: Any) -> Any:
        """By what the sum of losses is multiplied; the average over processes takes `ranks` away again."""
        return (1.0 / torch.as_tensor(count, device=device, dtype=torch.float32)).clamp(max=1.0) * self.ranks

    def _through(self, *given: Any) -> Any:
        """The loss, by way of what stands around the model: that must see a forward pass to know which gradients come."""
        if self.outer is None:
            return self.loss(*given)
        before = vars(self.whole).get("forward")
        self.whole.forward = self.loss
        try:
            return self.outer(*given)
        finally:
            del self.whole.forward
            if before is not None:
                self.whole.forward = before

    def loss(self, batch: dict[str, Any], targets: Any, scale: Any, kept: Any | None) -> Any:
        """The loss as a graph of autograd. kept: the places of the targets; None: they are all places."""
        balanced = bool(getattr(self.causal.config, "output_router_logits", False))
        borders = batch["borders"] if batch["borders"].is_cuda else batch["borders"].cpu()  # read once, not by each layer
        with self._autocast():
            found = self.body(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False,
                cu_seq_lens_q=borders, cu_seq_lens_k=borders,
                max_length_q=batch["longest"], max_length_k=batch["longest"], **({"output_router_logits": True} if balanced else {}),
            )  # fmt: skip
            value = self._of_head(found.last_hidden_state.squeeze(0), targets, scale, kept)
            return value + self._of_routers(found.router_logits) if balanced else value

    def _of_head(self, hidden: Any, targets: Any, scale: Any, kept: Any | None) -> Any:
        hidden = self.scaled(hidden)
        if self.whole_logits:
            logits = self.head(hidden).float()
            return torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") * scale
        rows = hidden if kept is None else hidden[kept]
        return head.loss(rows, self.head.weight, targets, scale, compiled=self.compiled, masters=self.masters)

    def scaled(self, hidden: Any) -> Any:
        """States before the head, multiplied by what the model multiplies its logits by."""
        settings = self.causal.config
        factor = float(getattr(settings, "logit_scale", None) or 1.0) / float(getattr(settings, "logits_scaling", None) or 1.0)
        return hidden if factor == 1 else hidden * factor

    def _of_routers(self, scores: Any) -> Any:
        """What keeps experts evenly used, by the model's own function: there is no padding to leave out. As with padded batches each
        batch adds its own, whatever it counts among the labels of a step."""
        of_model = sys.modules[type(self.causal).__module__].load_balancing_loss_func
        uneven = of_model(scores, self.causal.num_experts, self.causal.num_experts_per_tok)
        return self.causal.router_aux_loss_coef * self.ranks / self.share * uneven

    def _autocast(self) -> Any:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.causal.device.type, dtype=self.dtype, cache_enabled=not _capturing())


def _capturing() -> bool:
    return bool(torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
