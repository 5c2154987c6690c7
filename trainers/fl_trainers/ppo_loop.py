"""PPO as LLaMA-Factory has it: policy and value head on one model, a reference, and a judge, in a loop of our own.

Not on TRL's experimental PPOTrainer: that one wants a second whole model for the values and a third one for the rewards, both with a
head for classification, where LLaMA-Factory's users have value heads and adapters on one base; and its train() is a loop of its own
that neither goes on from a checkpoint nor stops between steps. Here a step of the Trainer is a whole round (answers, scores, every
update but the last one, whose gradients the Trainer steps on), so that schedule, logging, checkpoints and our stop work as in every
other stage. As in LLaMA-Factory `max_steps` and `logging_steps` count rounds, and a round holds
per_device_train_batch_size x gradient_accumulation_steps x ppo_buffer_size questions.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fl_trainers import others, ppo_math, sharding, value_head
from fl_trainers.config import Config
from fl_trainers.errors import TrainingError
from fl_trainers.loop import bad_loss
from fl_trainers.losses import Anchor
from fl_trainers.noting import Noting
from fl_trainers.ppo_judge import Judge
from fl_trainers.progress import rank, world_size
from fl_trainers.reward_model import HeadLoop

STATE = "ppo_state.json"
"""What a checkpoint has beside the weights."""


class Actor(value_head.WithValueHead):
    """Policy and values."""

    def forward(self, keep: int = 0, *, ask: Callable[[Any], Any] | None = None, **given: Any) -> Any:
        """Logits and values of the last `keep` places. The head's own input is what the values are made of.

        ask: something else that is wanted of the model inside (answers, what it said before); it comes this way since spread weights
        are brought together around this call only.
        """
        if ask is not None:
            return ask(self.pretrained_model)
        head, caught = self.pretrained_model.get_output_embeddings(), []
        handle = head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
        try:
            logits = self.pretrained_model(**given, use_cache=False).logits
        finally:
            handle.remove()
        return logits[:, -keep:], self.v_head(caught[0][:, -keep:])


@dataclass(frozen=True)
class Questions:
    """Batches of questions, padded on the left, with their rows beside them."""

    pad: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[number, width - length :] = torch.frombuffer(row["input_ids"], dtype=torch.int32)
            mask[number, width - length :] = 1
        return {"input_ids": ids, "attention_mask": mask, "rows": [{key: row[key] for key in ("prompt", "answer")} for row in rows]}


class PpoLoop(Noting, HeadLoop):
    """One step is one round."""

    def __init__(self, *, judge: Judge, size: int, accumulate: int, **kwargs: Any) -> None:
        """size: answers a batch; accumulate: batches an update."""
        kwargs["data_collator"] = Questions(kwargs["processing_class"].pad_token_id)
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.judging, self.size, self.accumulate = judge, size, accumulate
        config: Config = self.config_of_run
        self.settings = config.method.ppo
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inner = self.model.pretrained_model
        self.reference: Anchor = others.reference(config, inner, self.processing_class, self.device_of_run)
        self.spread = sharding.spreads_weights(config) is not None
        takes = inspect.signature(value_head.plain(inner).forward).parameters
        self._positions, self._cuts = "position_ids" in takes, "logits_to_keep" in takes
        self.distance, self.moments = ppo_math.Distance(self.settings.target), ppo_math.Moments()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        if world_size() > 1 and self.state.global_step == 0:  # else all would sample by the same random numbers
            torch.manual_seed(self.args.seed + 1000 * rank())
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():  # generation and reference go past the model that autocasts itself
            model.eval()
            made = self._round(model, inputs)
        self.tokens_seen += int(made["attention"].sum())
        model.train()
        updates = list(self._updates(len(made["ids"])))
        total = torch.zeros((), device=made["ids"].device)
        for number, batches in enumerate(updates):
            for at, rows in enumerate(batches):
                if self.is_deepspeed_enabled:  # its engine steps in the backward pass of an update's last batch
                    self.accelerator.gradient_state._set_sync_gradients(at == len(batches) - 1)
                total += self._learn(model, {name: part[rows] for name, part in made.items()}, len(batches))
            if number < len(updates) - 1:  # the Trainer does the last one, with the schedule's step
                self._update(model)
        loss = total / len(updates)
        if not math.isfinite(loss.item()):
            raise TrainingError(*bad_loss(loss.item(), self.state.global_step + 1))
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Held-out questions are answered and judged as in training; there is no loss."""
        plain, inputs = self.accelerator.unwrap_model(model), self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            made, scores, kept = self._judged_answers(plain, inputs)
        self.note(False, {"reward": scores[kept], "completions/mean_length": made["answered"].sum(-1).float()})
        return None, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The same random numbers in every evaluation, and as if there had been none for the training that goes on."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.args.seed + 1000 * rank())
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self.noted(False).items()})
        return output

    def _updates(self, answers: int) -> Iterator[list[Any]]:
        """The batches of each update, shuffled anew in each epoch."""
        for _ in range(self.settings.epochs):
            batches = list(torch.randperm(answers).split(self.size))
            for at in range(0, len(batches), self.accumulate):
                yield batches[at : at + self.accumulate]

    def _learn(self, model: Any, part: dict[str, Any], share: int) -> Any:
        """Gradients of one batch."""
        with self.compute_loss_context_manager():
            logps, values = self._looked_at(model, part)
            policy, value, loss = ppo_math.loss(logps, values, part)
        self._backward(loss / share)
        self.note(True, {"policy_loss": policy.reshape(1), "value_loss": value.reshape(1)})
        return loss.detach() / share

    def _update(self, model: Any) -> None:
        """Clips and steps, as the Trainer does. DeepSpeed's engine has done so."""
        if self.is_deepspeed_enabled:
            return
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        model.zero_grad()

    def _round(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Answers, what they were worth, and what is learned from them."""
        plain = self.accelerator.unwrap_model(model)
        parts = self._parts(inputs)
        answers, scores, kept = self._judged_answers(plain, inputs)
        answered = answers["answered"]
        round_ = {
            "ids": torch.cat([inputs["input_ids"], answers["ids"]], 1), "mask": answered & kept[:, None],
            "attention": torch.cat([inputs["attention_mask"], answered.long()], 1),
        }  # fmt: skip
        looks = [self._looked_at(plain, {name: part[rows] for name, part in round_.items()}) for rows in parts]
        before = [self._before(plain, {name: part[rows] for name, part in round_.items()}) for rows in parts]
        logps, values = (torch.cat(column) for column in zip(*looks, strict=True))
        weighed = self.moments.normalized(scores, self.accelerator.gather(scores)) if self.settings.score_norm else scores
        rewards, distance = ppo_math.token_rewards(weighed, logps, torch.cat(before), round_["mask"], self.distance.weight)
        gains, returns = ppo_math.advantages(rewards, values, round_["mask"], whiten=self.settings.whiten_rewards)
        far = distance.sum(-1)
        self.note(True, {
            "reward": scores[kept], "kl": far, "completions/mean_length": answered.sum(-1).float(),
            "reward_std": (scores[kept].std() if kept.sum() > 1 else scores.new_zeros(())).reshape(1),
        })  # fmt: skip
        self.distance.update(float(self.accelerator.reduce(far.mean(), "mean")), len(scores) * world_size())
        return {**round_, "logps": logps, "values": values, "advantages": gains, "returns": returns}

    def _parts(self, inputs: dict[str, Any]) -> list[slice]:
        """The batches of a round."""
        return [slice(at, at + self.size) for at in range(0, len(inputs["input_ids"]), self.size)]

    def _judged_answers(self, plain: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        """Answers, padded on the right; their scores; which of them have one."""
        answers = plain(ask=lambda inner: [row for part in self._parts(inputs) for row in self._answers(inner, inputs, part)])
        width = max(len(answer) for answer in answers)
        answered = torch.zeros((len(answers), width), dtype=torch.bool, device=self.args.device)
        made = torch.full((len(answers), width), int(self.processing_class.pad_token_id), device=self.args.device)
        for number, answer in enumerate(answers):
            made[number, : len(answer)], answered[number, : len(answer)] = answer, True
        return {"ids": made, "answered": answered}, *plain(ask=lambda _: self._judged(inputs, answers))

    def _answers(self, inner: Any, inputs: dict[str, Any], part: slice) -> list[Any]:
        """Sampled answers with their end token, without padding."""
        from transformers import GenerationConfig

        sampling = self.config_of_run.generation
        ends = inner.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends)
        settings = GenerationConfig(
            do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, num_beams=sampling.num_beams,
            max_new_tokens=sampling.max_new_tokens, repetition_penalty=sampling.repetition_penalty, length_penalty=sampling.length_penalty,
            eos_token_id=ends, pad_token_id=self.processing_class.pad_token_id, use_cache=True,
        )  # fmt: skip
        ids = inputs["input_ids"][part]
        made = inner.generate(
            input_ids=ids, attention_mask=inputs["attention_mask"][part], generation_config=settings,
            synced_gpus=self.spread and world_size() > 1,  # who has ended goes on, since the others need his share of the weights
        )[:, ids.shape[1] :]  # fmt: skip
        over = torch.isin(made, torch.tensor(ends, device=made.device))
        lengths = torch.where(over.any(-1), over.float().argmax(-1) + 1, made.shape[1])
        return [answer[:length] for answer, length in zip(made, lengths.tolist(), strict=True)]

    def _judged(self, inputs: dict[str, Any], answers: list[Any]) -> tuple[Any, Any]:
        """Scores, and which answers have one."""
        texts = [
            torch.cat([ids[mask.bool()], answer])
            for ids, mask, answer in zip(inputs["input_ids"], inputs["attention_mask"], answers, strict=True)
        ]
        said = self.processing_class.batch_decode(answers, skip_special_tokens=self.config_of_run.generation.skip_special_tokens)
        rows = [
            {**row, "completion": text, "ids": answer.tolist()} for row, text, answer in zip(inputs["rows"], said, answers, strict=True)
        ]
        parts = [slice(at, at + self.size) for at in range(0, len(rows), self.size)]
        found = [score for part in parts for score in self.judging(texts[part], rows[part])]
        device = self.args.device
        kept = torch.tensor([score is not None for score in found], device=device)
        return torch.tensor([0.0 if score is None else score for score in found], device=device), kept

    def _given(self, part: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """What the model is given, and how many of its logits are needed: those before each token of the answers.

        Columns at both ends that are padding in every row of the batch are left out.
        """
        attention, width = part["attention"], part["mask"].shape[1]
        first = int(attention.any(0).long().argmax())
        used = max(int(attention[:, -width:].any(0).sum()), 1)
        columns = slice(first, attention.shape[1] - width + used)
        given = {"input_ids": part["ids"][:, columns], "attention_mask": attention[:, columns]}
        if self._positions:
            given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if self._cuts:
            given["logits_to_keep"] = used + 1
        return given, used + 1

    def _looked_at(self, model: Any, part: dict[str, Any]) -> tuple[Any, Any]:
        """Log-probabilities of the answers' tokens, and the values of the states in which they were chosen."""
        given, keep = self._given(part)
        logits, values = model(keep, **given)
        rest = (0, part["mask"].shape[1] + 1 - keep)
        return functional.pad(chosen(logits, given["input_ids"], keep), rest), functional.pad(values[:, :-1].float(), rest)

    def _before(self, plain: Any, part: dict[str, Any]) -> Any:
        """The same by the reference."""
        given, keep = self._given(part)
        if self.reference.adapter:
            self.reference.model = plain.pretrained_model
            logits = plain(ask=lambda _: self.reference.logits(given))
        else:
            logits = self.reference.logits(given)
        found = chosen(logits[:, -keep:], given["input_ids"], keep)
        return functional.pad(found, (0, part["mask"].shape[1] + 1 - keep))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            path = Path(output_dir or self.args.output_dir) / STATE
            path.write_text(json.dumps(ppo_math.state(self.distance, self.moments)) + "\n", encoding="utf-8")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        made = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            found = json.loads((Path(resume_from_checkpoint) / STATE).read_text(encoding="utf-8"))
            self.distance.weight, self.moments = found["weight"], ppo_math.Moments(**found["moments"])
        return made


def chosen(logits: Any, ids: Any, keep: int) -> Any:
    """Log-probabilities of the last tokens, each by the logits before it."""
    rows = logits[:, :-1].float()
    return rows.log_softmax(-1).gather(2, ids[:, -keep + 1 :].unsqueeze(2)).squeeze(2)
