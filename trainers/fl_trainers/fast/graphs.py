"""CUDA graphs over lengths: a short batch costs the processor more to launch than the device to compute, so it is launched as one.

A graph has fixed shapes: batches are filled up to one of few lengths with a document of their own that counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from fl_trainers.data.encode import IGNORE
from fl_trainers.fast import attention
from fl_trainers.fast.beside import Beside
from fl_trainers.fast.step import Step
from fl_trainers.progress import log

SMALLEST = 128
LONGER = 1.5
"""How many times longer a graph may be than the batch's own length."""
PATIENCE = 3072
"""Tokens of filling that cost half of what a capture does: 0.35 s, 0.06 ms a token (8B, an H200)."""
BUNCH = 2**26
"""Gradients that are sent at once."""


def bucket(tokens: int) -> int:
    """The length a batch is filled up to: of four between each power of two and the next, so at most a fifth is filling."""
    if tokens <= SMALLEST:
        return SMALLEST
    unit = 1 << max((tokens - 1).bit_length() - 3, 5)
    return -(-tokens // unit) * unit


class Lengths:
    """Which graph a batch takes: its own length's, or a longer one that is there, until that has cost as much as a capture."""

    def __init__(self) -> None:
        self._filled: dict[int, int] = {}
        """Tokens of filling so far that a graph of the length itself would have saved."""

    def choose(self, tokens: int, held: Iterable[int]) -> int:
        """held: lengths that have graphs."""
        own = bucket(tokens)
        longer = min((length for length in held if own <= length <= LONGER * own), default=own)
        filled = self._filled.get(own, 0) + longer - own
        if filled > PATIENCE:
            return own
        self._filled[own] = filled
        return longer


@dataclass
class _Captured:
    graph: Any
    batch: dict[str, Any]
    targets: Any
    scale: Any
    loss: Any


class Graphs:
    """Steps by graph, captured when a length first comes. Launched singly: the first batch of all, and what is too long."""

    def __init__(self, step: Step, documents: int, longest: int) -> None:
        """documents: rows of a full batch; longest: tokens from which a batch is not captured."""
        self.step, self.documents, self.longest = step, documents, longest
        self.lengths = Lengths()
        self.held: dict[int, _Captured] = {}
        self.warm = False
        self.pool: Any = None
        self.weights = [parameter for parameter in step.whole.parameters() if parameter.requires_grad]
        masters = step.masters
        self.added = [weight for weight in self.weights if not (masters.fresh and weight in masters.copies)]
        """Weights whose gradients are added to; what stands in the others is written over."""

    def run(self, batch: dict[str, Any], count: Any, backward: Any = None, share: int = 1) -> Any:
        """As Step.run."""
        count = count * share
        length = self.lengths.choose(batch["num_tokens"], self.held)
        if length not in self.held:
            cold, self.warm = not self.warm, True  # libraries set themselves up at their first call, which no graph can hold
            if cold or length > self.longest or len(batch["borders"]) - 1 > self.documents:
                return self.step.run(batch, count, backward)
            try:
                self.held[length] = self._capture(length, batch, count)
            except RuntimeError as error:
                self.longest = 0  # whatever stands in the way now will the next time
                log.warning("no graphs from here on: %s", str(error).strip().splitlines()[0])
                return self.step.run(batch, count, backward)
        captured = self.held[length]
        self._fill(captured, batch, count)
        captured.graph.replay()
        return captured.loss.clone()

    def zero(self, *_: Any, **__: Any) -> None:
        """In place of model.zero_grad: a graph writes gradients where they were when it was captured."""
        if held := [weight.grad for weight in self.added if weight.grad is not None]:
            torch._foreach_zero_(held)

    def average(self) -> None:
        """Gradients as the mean over all processes, once a step: a graph has no place for the hooks by which DDP does it.

        A weight that got none here counts as 0, since others may have one.
        """
        if self.step.ranks == 1:
            return
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        bunch: list[Any] = []
        size = 0
        for weight in self.weights:
            if bunch and (size + weight.numel() > BUNCH or bunch[0].dtype != weight.grad.dtype):
                self._mean(bunch)
                bunch, size = [], 0
            bunch.append(weight.grad)
            size += weight.numel()
        if bunch:
            self._mean(bunch)

    def _mean(self, gradients: list[Any]) -> None:
        joined = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(joined)
        joined /= self.step.ranks
        parts = joined.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])

    def _capture(self, length: int, batch: dict[str, Any], count: Any) -> _Captured:
        device = batch["input_ids"].device
        whole = {"dtype": torch.long, "device": device}
        inputs: dict[str, Any] = {
            "input_ids": torch.zeros((1, length), **whole), "position_ids": torch.zeros((1, length), **whole),
            "borders": torch.zeros(self.documents + 2, dtype=torch.int32, device=device), "longest": length,
        }  # fmt: skip
        made = _Captured(
            torch.cuda.CUDAGraph(), inputs, torch.zeros(length, **whole), torch.ones((), dtype=torch.float32, device=device), None
        )
        self._fill(made, batch, count)
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        before = [weight.grad.clone() for weight in self.added]  # of earlier batches of this step
        try:
            with attention.switched(self.step.causal.config):
                if not self.held:
                    self._rehearse(made)
                # other threads go on meanwhile: the one that pins the next batch's memory, NCCL's that asks the device how it is
                with torch.cuda.graph(made.graph, pool=self.pool, capture_error_mode="thread_local"):
                    value = self.step.loss(made.batch, made.targets, made.scale, None)
                    value.backward()
                    Beside.join()
                    made.loss = value.detach()
        finally:
            if before:
                torch._foreach_copy_([weight.grad for weight in self.added], before)
        self.pool = made.graph.pool()
        return made

    def _rehearse(self, made: _Captured) -> None:
        """Once on a stream beside, as torch.cuda.graph wants it of what is captured first."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.step.loss(made.batch, made.targets, made.scale, None).backward()
        torch.cuda.current_stream().wait_stream(side)

    def _fill(self, captured: _Captured, batch: dict[str, Any], count: Any) -> None:
        tokens = batch["num_tokens"]
        length = captured.targets.shape[0]
        captured.batch["input_ids"].zero_()
        captured.batch["input_ids"][:, :tokens].copy_(batch["input_ids"])
        captured.batch["position_ids"].zero_()
        captured.batch["position_ids"][:, :tokens].copy_(batch["position_ids"])
        captured.targets.fill_(IGNORE)
        captured.targets[:tokens].copy_(batch["targets"])
        documents = len(batch["borders"])
        captured.batch["borders"].fill_(length)
        captured.batch["borders"][:documents].copy_(batch["borders"])
        captured.scale.copy_(self.step.scale(count, captured.scale.device))
