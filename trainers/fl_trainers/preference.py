"""Losses over preferences (dpo, orpo, simpo, kto), with LLaMA-Factory's semantics, and the loop that computes them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from fl_trainers import others
from fl_trainers.config import Preference
from fl_trainers.data.encode import IGNORE
from fl_trainers.fast.pairs import InStep, Pairs, flat
from fl_trainers.loop import Loop
from fl_trainers.losses import Anchor
from fl_trainers.noting import Noting

Measured = tuple[Any, Any]
"""Of each row: the sum of log-probabilities over its labels, and how many there are."""
STATE = "preference_state.json"
"""What a checkpoint has beside the weights, where rewards are classified."""
AVERAGED = ("ipo", "orpo", "simpo")
"""Losses that look at the mean of an answer's log-probabilities; the others at their sum."""


def log_probabilities(logits: Any, labels: Any, ld_alpha: float | None = None) -> tuple[Any, Any]:
    """Of each row: the sum over its labels, and how many there are. Logits may lack the beginning of the rows.

    ld_alpha: weight of the part of an answer that is longer than the other one of its pair (LD-DPO).
    """
    labels = labels[:, 1:]
    kept = logits.shape[1] - 1
    targets, rows = labels[:, labels.shape[1] - kept :], logits[:, :-1].float()
    mask = targets != IGNORE
    each = rows.log_softmax(-1).gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2) * mask
    counts = mask.sum(-1)
    if ld_alpha is not None:
        common = torch.stack(counts.chunk(2)).min(0).values.repeat(2)
        beyond = mask.cumsum(-1) > common[:, None]
        each = torch.where(beyond, ld_alpha * each, each)
    return each.sum(-1), counts


def pair_loss(kind: str, settings: Preference, better: Any, worse: Any) -> Any:
    """The loss of each pair. better, worse: log-probabilities, less those of the model as it was where kind compares with it."""
    beta, margin = settings.beta, better - worse
    if kind == "sigmoid":
        smooth = settings.label_smoothing
        return -functional.logsigmoid(beta * margin) * (1 - smooth) - functional.logsigmoid(-beta * margin) * smooth
    if kind == "hinge":
        return torch.relu(1 - beta * margin)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if kind == "kto_pair":
        far_better, far_worse = (part.mean().clamp(min=0).detach() for part in (better, worse))
        losses = 1 - torch.sigmoid(beta * (better - far_worse)), 1 - torch.sigmoid(beta * (far_better - worse))
        return torch.stack(losses).mean(0)
    if kind == "simpo":
        return -functional.logsigmoid(beta * margin - settings.simpo_gamma)
    if kind == "orpo":
        odds = margin - (_log_of_rest(better) - _log_of_rest(worse))
        return -better - beta * functional.logsigmoid(odds)
    raise AssertionError(kind)


def _log_of_rest(logps: Any) -> Any:
    """log(1 - p) of a log-probability; one of 0, which has no rest, counts as a hair below."""
    return torch.log(-torch.expm1(logps.clamp(max=-1e-7)))


def kto_loss(settings: Preference, gains: Any, liked: Any, distance: Any) -> Any:
    """The loss of each row. gains: log-probabilities less those before; distance: how far the model has gone, a number above 0."""
    good = settings.kto_chosen_weight * (1 - torch.sigmoid(settings.beta * (gains - distance)))
    bad = settings.kto_rejected_weight * (1 - torch.sigmoid(settings.beta * (distance - gains)))
    return torch.where(liked, good, bad)


class PreferenceLoop(Noting, InStep, Loop):
    """Loop whose batches hold two answers a row. Dropout is off, as LLaMA-Factory has it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False  # losses are means over pairs
        method = self.config_of_run.method
        self.settings = method.preference
        self.kind = method.stage if method.stage in ("orpo", "simpo", "kto") else self.settings.loss
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.reference: Anchor | None = None
        if self.kind not in ("orpo", "simpo"):
            self.reference = others.reference(self.config_of_run, self.model, self.processing_class, self.device_of_run)
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self._cuts = "logits_to_keep" in inspect.signature(inner.forward).parameters
        self._running = (0, 0.0)
        self.data_collator = self._padded

    def _inputs(self, inputs: dict[str, Any], rows: slice = slice(None)) -> dict[str, Any]:
        """What the model is given. Logits before the first answer are not computed where the model can leave them out."""
        labels = inputs["labels"][rows]
        given = {"input_ids": inputs["input_ids"][rows], "attention_mask": inputs["attention_mask"][rows], "use_cache": False}
        if self._cuts:
            first = int((labels != IGNORE).any(0).float().argmax())
            given["logits_to_keep"] = labels.shape[1] - max(first - 1, 0)
        return given

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None, **more: Any
    ) -> Any:
        loss = self._kto(model, inputs) if self.kind == "kto" else self._pairs(model, inputs)
        return (loss, None) if return_outputs else loss

    def _pairs(self, model: Any, inputs: dict[str, Any]) -> Any:
        training = model.training
        (sums, counts), compared = (self._without_padding if self.fast.padding_free and training else self._measured)(model, inputs)
        counts = counts.clamp(min=1)
        means = sums / counts
        values = means if self.kind in AVERAGED else sums
        better, worse = gains = values.chunk(2)
        if compared is not None:
            before, lengths = compared
            before = before / lengths.clamp(min=1) if self.kind in AVERAGED else before
            gains = (values - before).chunk(2)
        losses = pair_loss(self.kind, self.settings, *gains)
        if self.settings.bco_weight > 0 and self.reference is not None:
            losses = (losses + self._bco(*gains) * self.settings.bco_weight) / (1 + self.settings.bco_weight)
        if self.settings.ftx > 0:
            losses = losses - self.settings.ftx * means.chunk(2)[0]
        good, bad = (self.settings.beta * part.detach() for part in gains)
        self.note(training, {
            "rewards/chosen": good, "rewards/rejected": bad, "rewards/margins": good - bad, "rewards/accuracies": (good > bad).float(),
            "logps/chosen": better.detach(), "logps/rejected": worse.detach(),
        })  # fmt: skip
        return losses.mean()

    def _measured(self, model: Any, inputs: dict[str, Any]) -> tuple[Measured, Measured | None]:
        """Log-probabilities of the rows by the model, and by the one that it is compared with."""
        given, labels = self._inputs(inputs), inputs["labels"]
        now = log_probabilities(model(**given).logits, labels, self.settings.ld_alpha)
        return now, None if self.reference is None else log_probabilities(self._before(model, given), labels)

    def _without_padding(self, model: Any, inputs: dict[str, Any]) -> tuple[Measured, Measured | None]:
        """The same, computed without the padding and with logits where answers count."""
        batch = flat(inputs)
        now = self._asked_flat(model).log_probabilities(batch, self.settings.ld_alpha)
        return now, None if self.reference is None else self._before_flat(model, batch)

    def _asked_flat(self, model: Any) -> Pairs:
        """The model as the Trainer has wrapped it: what is around it must see a forward pass whose gradients it shall bring together."""
        inner = self.accelerator.unwrap_model(model)
        return Pairs(inner, self._flat_kind, outer=None if model is inner else model)

    @property
    def _flat_kind(self) -> Any:
        """The dtype of autocast; DeepSpeed's engine has none."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return None if self.is_deepspeed_enabled else kinds.get(self.accelerator.mixed_precision)

    def _before_flat(self, model: Any, batch: dict[str, Any]) -> Measured:
        """By what the model is compared with."""
        if self.reference is None:
            raise AssertionError(self.kind)
        self._follow(model)
        kind = self._flat_kind if self.reference.adapter else None  # a copy is in the run's dtype already
        found: Measured = self.reference.asked(batch["input_ids"].device, lambda before: Pairs(before, kind).log_probabilities(batch))
        return found

    def _bco(self, better: Any, worse: Any) -> Any:
        """Binary classification against the running mean of all rewards."""
        rewards = self.settings.beta * better, self.settings.beta * worse
        count, mean = self._running
        now = self.accelerator.reduce(torch.cat(rewards).mean().detach(), "mean").item()
        count, mean = self._running = (count + 1, mean + (now - mean) / (count + 1))
        return -functional.logsigmoid(rewards[0] - mean) - functional.logsigmoid(mean - rewards[1])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and self.settings.bco_weight > 0:
            count, mean = self._running
            path = Path(output_dir or self.args.output_dir) / STATE
            path.write_text(json.dumps({"batches": count, "mean_reward": mean}) + "\n", encoding="utf-8")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        made = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None and (path := Path(resume_from_checkpoint) / STATE).is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            self._running = (int(found["batches"]), float(found["mean_reward"]))
        return made

    def _kto(self, model: Any, inputs: dict[str, Any]) -> Any:
        training, liked = model.training, inputs["liked"]
        half = len(liked)
        measured = self._kto_flat if self.fast.padding_free and training else self._kto_padded
        (sums, counts), away, before, away_before = measured(model, inputs, half)
        distance = self.accelerator.reduce((away - away_before).mean(), "mean").clamp(min=0)
        gains = sums - before
        loss = kto_loss(self.settings, gains, liked, distance).mean()
        if self.settings.ftx > 0 and bool(liked.any()):
            loss = loss - self.settings.ftx * (sums / counts.clamp(min=1))[liked].mean() / liked.sum() * half
        rewards = self.settings.beta * gains.detach()
        self.note(training, {"rewards/chosen": rewards[liked], "rewards/rejected": rewards[~liked], "kl": distance.reshape(1)})
        return loss

    def _kto_padded(self, model: Any, inputs: dict[str, Any], half: int) -> tuple[Measured, Any, Any, Any]:
        """The model's own rows and their others, the reference's own rows and their others. Gradients are wanted of the first alone."""
        own, other = slice(0, half), slice(half, None)
        given, far = self._inputs(inputs, own), self._inputs(inputs, other)
        now = log_probabilities(model(**given).logits, inputs["labels"][own])
        with torch.no_grad():
            away, _ = log_probabilities(self.accelerator.unwrap_model(model)(**far).logits, inputs["labels"][other])
        before, _ = log_probabilities(self._before(model, given), inputs["labels"][own])
        away_before, _ = log_probabilities(self._before(model, far), inputs["labels"][other])
        return now, away, before, away_before

    def _kto_flat(self, model: Any, inputs: dict[str, Any], half: int) -> tuple[Measured, Any, Any, Any]:
        """The same without padding; the reference is asked for both at once."""
        parts = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        now = self._asked_flat(model).log_probabilities(flat({name: value[:half] for name, value in parts.items()}))
        with torch.no_grad():
            alone = self._asked_flat(self.accelerator.unwrap_model(model))
            away, _ = alone.log_probabilities(flat({name: value[half:] for name, value in parts.items()}))
        before, _ = self._before_flat(model, flat(parts))
        return now, away, before[:half], before[half:]

    def _before(self, model: Any, given: dict[str, Any]) -> Any:
        if self.reference is None:
            raise AssertionError(self.kind)
        self._follow(model)
        return self.reference.logits(given)

    def _follow(self, model: Any) -> None:
        """Without its adapter the model is its own reference: as the Trainer holds it now."""
        if self.reference is not None and self.reference.adapter:
            self.reference.model = self.accelerator.unwrap_model(model)
