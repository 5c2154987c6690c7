"""Training of reward models: the last token of the better answer shall have a higher value than that of the worse one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from fl_trainers import sharding, value_head
from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.fast.pairs import InStep
from fl_trainers.loop import Loop
from fl_trainers.noting import Noting
from fl_trainers.progress import log


def start_of(config: Config) -> str | None:
    """Where a value head to go on from may lie: beside the last adapter, else beside the model."""
    model = config.model
    if model.adapters:
        return model.adapters[-1]
    return model.path if model.kind in ("folder", "hub") else None


def add_head(config: Config, model: value_head.WithValueHead, dtype: Any) -> None:
    """The head as it was saved with the model or adapter that the run starts from; else it stays random.

    dtype: the model's. ZeRO-3 wants all that is trained in one: adapters are float32, whole models what they were loaded in.
    """
    source = start_of(config)
    key = "adapter_name_or_path" if config.model.adapters else "model_name_or_path"
    if source is not None and value_head.load(model.v_head, source, key, config.model.revision):
        log.info("value head: from %s", source)
    else:
        log.info("value head: new, with random weights")
    if sharding.zero_stage(config) == 3 and config.method.finetuning_type not in ("lora", "oft") and config.model.kind != "tiny":
        model.v_head.to(dtype)


class HeadLoop(Loop):
    """Loop whose model has a value head: it is saved beside the model or adapter, and read again."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = str(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        value_head.save(self.accelerator.unwrap_model(self.model), folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, Path(folder) / "training_args.bin")

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        self.model.one_unit = self.is_fsdp_enabled
        try:
            return super()._prepare_for_training(*args, **kwargs)
        finally:
            self.model.one_unit = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        whole = model if model is not None else self.model
        if self.is_fsdp_enabled:  # its own file holds the head as well
            super()._load_from_checkpoint(resume_from_checkpoint, whole)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, whole.pretrained_model)
        if not value_head.load(whole.v_head, resume_from_checkpoint, "resume_from_checkpoint"):
            raise InputError(f"{resume_from_checkpoint} has no {value_head.FILE}", "a checkpoint of the same stage")

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class RewardLoop(Noting, InStep, HeadLoop):
    """Batches hold two answers a row: first the better ones, then the worse ones."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs
        self.data_collator = self._padded

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None, **more: Any
    ) -> Any:
        flat = self.fast.padding_free and model.training
        better, worse = model(inputs["input_ids"], inputs["attention_mask"], flat).chunk(2)
        loss = -functional.logsigmoid(better - worse).mean()
        right = (better > worse).float()
        self.note(model.training, {
            "rewards/chosen": better.detach(), "rewards/rejected": worse.detach(),
            "rewards/accuracies" if model.training else "accuracy": right,
        })  # fmt: skip
        return (loss, None) if return_outputs else loss
