"""The training loop: transformers' Trainer with our counting, our NaN check and our way of stopping."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from fl_trainers import adapters, losses, optimizers, pissa, resuming, sharding, trackers
from fl_trainers.config import Config
from fl_trainers.data.encode import IGNORE
from fl_trainers.device import BACKENDS, Device, memory_mib
from fl_trainers.errors import InputError, TrainingError
from fl_trainers.fast.choice import Fast
from fl_trainers.progress import Events, log, rank, world_size
from fl_trainers.stop import stop


def arguments_of(config: Config, device: Device) -> TrainingArguments:
    """The recipe's TrainingArguments and what the trainer itself needs of them."""
    trackers.settle(config, os.environ)
    given = dict(config.training.arguments)
    for name in ("gradient_checkpointing", "gradient_checkpointing_kwargs", "remove_unused_columns", "output_dir", "label_names"):
        given.pop(name, None)  # model.py checkpoints; the others have one right value
    for name in ("generation_max_length", "generation_num_beams", "sortish_sampler"):
        given.pop(name, None)  # predict.py reads them
    given.setdefault("report_to", "none")
    if config.data.streaming:  # every process reads the stream and takes its rows; batches are not sent around
        given["accelerator_config"] = {**(given.get("accelerator_config") or {}), "dispatch_batches": False}
    if device.type == "cuda" and not isinstance(given.get("accelerator_config"), str):  # copying a batch waits for the step before, else
        given["accelerator_config"] = {"non_blocking": True} | (given.get("accelerator_config") or {})
    plateau = given.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    if config.method.early_stopping_steps is not None or given.get("load_best_model_at_end") or plateau:
        given.setdefault("metric_for_best_model", "reward" if config.method.stage in ("ppo", "grpo") else "loss")
    given.setdefault("disable_tqdm", True)
    given.setdefault("dataloader_pin_memory", device.type != "cpu")
    if int(given.get("dataloader_num_workers") or 0) and not config.data.streaming:  # each epoch would wait for new ones
        given.setdefault("dataloader_persistent_workers", True)
    if not config.data.shuffle:
        given.setdefault("train_sampling_strategy", "sequential")
    if config.model.liger:
        given.setdefault("use_liger_kernel", True)
    if config.method.pure_bf16:
        given["bf16"] = False
    if "WORLD_SIZE" in os.environ:
        given.setdefault("ddp_find_unused_parameters", False)
        given.setdefault("ddp_backend", BACKENDS[device.type])
    given |= {
        "output_dir": config.training.output_dir, "remove_unused_columns": False, "label_names": ["labels"],
        "logging_nan_inf_filter": False, "use_cpu": device.type == "cpu", "do_eval": config.training.do_eval,
    }  # fmt: skip
    try:
        if config.method.stage == "grpo":
            from fl_trainers import grpo_loop

            return grpo_loop.arguments_of(config, given)
        return TrainingArguments(**given)
    except (TypeError, ValueError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the training arguments do not fit together: {first}") from error


class Loop(optimizers.Chosen, resuming.Resumes, Trainer):  # type: ignore[misc]
    """Trainer with the tokens counted and every loss looked at."""

    optimizer: Any
    data_collator: Any

    def __init__(self, *, config: Config, device: Device, fast: Fast = Fast(), **kwargs: Any) -> None:  # noqa: B008 - frozen
        self.config_of_run = config
        self.device_of_run = device
        self.tokens_seen = 0
        self._bad_step: Any = None
        self.judge: Any = None
        """Measures generated answers in every evaluation."""
        self.fast = fast
        self._steps: Any = None
        self.masters: Any = None
        self._padded = kwargs["data_collator"]
        if fast.padding_free:
            from fl_trainers.fast.flat import Flat
            from fl_trainers.fast.masters import Masters

            kwargs["data_collator"] = Flat(self._padded.apart)
            self.masters = Masters()
        method = config.method
        if method.stage == "sft":
            kwargs.setdefault("compute_loss_func", losses.chosen(config))
        sharding.take_fsdp(config)
        super().__init__(**kwargs)
        sharding.check_taken(config, deepspeed=self.is_deepspeed_enabled, fsdp=self.is_fsdp_enabled)
        self.anchor: Any = None
        if method.use_asft_loss and method.stage == "sft":
            self.anchor = losses.Anchor(self.model, adapter=pissa.beside(self.model))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        self.tokens_seen += int(inputs.get("num_tokens", 0))
        if self.fast.padding_free:
            loss = self._flat_step(model, inputs, num_items_in_batch)
        else:
            inputs.pop("num_tokens", None)
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.device_of_run.type == "cpu":
            if not math.isfinite(loss.item()):
                raise TrainingError(*bad_loss(loss.item(), self.state.global_step + 1))
        else:
            self._note(loss)
        return loss

    def _flat_step(self, model: Any, inputs: dict[str, Any], count: Any) -> Any:
        """As Trainer.training_step, over a batch without padding."""
        if self._steps is None:
            self._steps = self._make_steps(model)
        model.train()
        inputs = self._prepare_inputs(inputs)
        share = 1
        if count is None:
            count, share = (inputs["labels"] != IGNORE).sum(), self.current_gradient_accumulation_steps * world_size()
        elif not self.args.average_tokens_across_devices:
            share = world_size()
        loss = self._steps.run(inputs, count, self._backward, share)
        if self.fast.graphs and self.accelerator.sync_gradients:
            self._steps.average()
        return loss

    def _backward(self, loss: Any) -> None:
        """As in Trainer.training_step."""
        if self.is_deepspeed_enabled:
            loss = _apart(loss)
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None and self.fast.padding_free:
            from fl_trainers.fast import load

            self.optimizer = load.one_pass(self)
        return super().create_optimizer(model)

    def _clip_grad_norm(self, model: Any) -> Any:
        """As the Trainer's, which also writes the clipped gradients; an optimizer that clips as it goes is only told the factor."""
        import torch

        from fl_trainers.fast import load

        if not load.makes_copies(self.optimizer):
            return super()._clip_grad_norm(model)
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
        getattr(self.optimizer, "optimizer", self.optimizer).clip = (self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def _make_steps(self, model: Any) -> Any:
        from fl_trainers.fast import load

        return load.steps(self, model)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluation pads: its metrics want logits row by row."""
        flat, self.data_collator = self.data_collator, self._padded
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = flat

    def _note(self, loss: Any) -> None:
        """Remembers on the device which step had the first loss that is no number: looking now would wait for the device."""
        import torch

        step = torch.full((), self.state.global_step + 1, device=loss.device)
        now = torch.where(torch.isfinite(loss), torch.zeros_like(step), step)
        self._bad_step = now if self._bad_step is None else torch.where(self._bad_step > 0, self._bad_step, now)

    def check(self) -> None:
        """Ends the run if a loss since the last look was no number."""
        step = int(self._bad_step.item()) if self._bad_step is not None else 0
        if step:
            raise TrainingError(*bad_loss(math.nan, step))

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("num_tokens", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """With predict_with_generate the scores of the answers stand beside the loss, where early stopping sees them too."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.judge is not None:
            output.metrics.update(self.judge.scores(metric_key_prefix))
        return output

    @functools.cached_property
    def _flops_a_token(self) -> int:
        """Forward and backward: 6 a trained weight, 4 a frozen one; the head counts, the embedding's lookup does not."""
        whole, trained = adapters.count(self.model)
        lookup = self.model.get_input_embeddings().weight
        lookup = 0 if getattr(self.model.config, "tie_word_embeddings", False) else getattr(lookup, "ds_numel", None) or lookup.numel()
        return int(6 * trained + 4 * max(whole - trained - lookup, 0))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return self._flops_a_token * int(inputs["input_ids"].numel())

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        optimizers.fill_schedule(self.args, num_training_steps)
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (TypeError, ValueError) as error:
            kind = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
            raise InputError(f"lr_scheduler_type: {kind}: {error}", f"lr_scheduler_kwargs: what {kind} takes") from error

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None, **more: Any
    ) -> Any:
        """ASFT looks at the batch with the model as it was before."""
        if self.anchor is not None:
            before, alpha = self.anchor.logits(inputs), self.config_of_run.method.asft_alpha
            self.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: losses.asft(
                outputs["logits"], before, labels, num_items_in_batch, alpha
            )
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch, **more)
        if not self.is_deepspeed_enabled:
            return found
        return (_apart(found[0]), *found[1:]) if return_outputs else _apart(found)


def _apart(loss: Any) -> Any:
    """A tensor of its own. Of one that its engine gave out DeepSpeed divides gradients by gradient_accumulation_steps, unasked: it knows
    its own backward pass by a hook, which on the same tensor would come after the one that divides.
    """
    return loss * 1.0


def bad_loss(value: float, step: int, what: str = "loss is") -> tuple[str, str]:
    """Message and remedy."""
    first = "; at the first step it may be the model: its weights, or what its number format cannot hold" if step == 1 else ""
    return (
        f"the {what} {'NaN' if math.isnan(value) else 'infinite'} at step {step}",
        f"a lower learning_rate, warmup_steps, or bf16 in place of fp16{first}; nothing was saved after this step",
    )


class Follow(TrainerCallback):  # type: ignore[misc]
    """Turns what the Trainer does into events, trainer_log.jsonl, and a stop at the right moment."""

    def __init__(self, events: Events, device: Device, folder: Path) -> None:
        self.events, self.device, self.folder = events, device, folder
        self.loop: Any = None
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.rewards: list[float] = []
        self.started = self.last_time = time.monotonic()
        self.last_tokens = self.last_step = 0
        self.peak = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = self.last_time = time.monotonic()
        self.last_step = state.global_step
        stop.join()
        stop.deferred = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if control.should_save:
            self.loop.check()
        if stop.agreed():
            control.should_training_stop = control.should_save = True
            args.save_only_model = False  # this checkpoint is made to go on from
        if not control.should_log:
            self.events.emit("step", step=state.global_step, max_steps=state.max_steps, epoch=round(state.epoch or 0.0, 4))
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_save = False  # the end of the epoch would save the same once more
        self.events.emit("save", step=state.global_step, path=str(self.folder / f"checkpoint-{state.global_step}"))
        log.info("saved checkpoint-%d", state.global_step)
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.loop.check()
            self._step(state, logs)
        elif "eval_loss" in logs or any(key.startswith("eval_") for key in logs):
            kept = {key: value for key, value in logs.items() if key.startswith("eval_")}
            self.events.emit("eval", step=state.global_step, **{**kept, "loss": logs.get("eval_loss")})
            shown = {key: value for key, value in kept.items() if "accuracy" in key or key.endswith("_reward")}
            self._trainer_log(state, {"eval_loss": logs.get("eval_loss"), **shown})
            each = [key for key in kept if key.endswith("_loss")]
            told = next((key for key in ("eval_loss", *shown, *each) if key in kept), "eval_loss")
            log.info("step %d/%d  %s %s", state.global_step, state.max_steps, told.replace("_", " "), _short(logs.get(told)))

    def _step(self, state: Any, logs: dict[str, Any]) -> None:
        now, tokens = time.monotonic(), self.loop.tokens_seen
        elapsed = max(now - self.last_time, 1e-9)
        rate = (tokens - self.last_tokens) * world_size() / elapsed
        self.last_time, self.last_tokens, self.last_step = now, tokens, state.global_step
        self.losses.append(float(logs["loss"]))
        self.rates.append(rate)
        self.rewards += [float(logs["reward"])] if "reward" in logs else []
        held = memory_mib(self.device, peak=self.device.type != "cpu")
        self.peak = max(self.peak, held)
        fields: dict[str, Any] = {
            "step": state.global_step, "max_steps": state.max_steps, "epoch": round(state.epoch or 0.0, 4), "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"), "learning_rate": logs.get("learning_rate"), "tokens": tokens * world_size(),
            "tokens_per_second": round(rate, 1), "memory_mib": held,
        }  # fmt: skip
        fields |= {name: logs[name] for name in ("reward", "reward_std", "kl", "completions/mean_length") if name in logs}
        fields |= {name.removeprefix("rewards/"): logs[name] for name in logs if name.startswith("rewards/")}
        if self.device.peak_flops is not None and self.loop._flops_a_token:
            fields["mfu"] = round(rate * self.loop._flops_a_token / (self.device.peak_flops * world_size()), 4)
        self.events.emit("step", **fields)
        judged = {"reward": logs["reward"]} if "reward" in logs else {}
        self._trainer_log(state, {"loss": logs["loss"], **judged, "lr": logs.get("learning_rate")})
        log.info("step %d/%d  loss %.4f  lr %.3g  grad %s  %d tokens/s", state.global_step, state.max_steps, logs["loss"],
                 logs.get("learning_rate") or 0.0, _short(logs.get("grad_norm")), rate)  # fmt: skip

    def _trainer_log(self, state: Any, values: dict[str, Any]) -> None:
        """The file that LLaMA-Factory's users plot from."""
        if rank():
            return
        passed = time.monotonic() - self.started
        left = passed / max(state.global_step, 1) * (state.max_steps - state.global_step)
        line = {
            "current_steps": state.global_step, "total_steps": state.max_steps, **values, "epoch": round(state.epoch or 0.0, 4),
            "percentage": round(state.global_step / max(state.max_steps, 1) * 100, 2),
            "elapsed_time": _clock(passed), "remaining_time": _clock(left),
        }  # fmt: skip
        with (self.folder / "trainer_log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
