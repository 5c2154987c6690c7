"""Follow, with what a checkpoint was made of beside it, and the losses of each evaluated data set in trainer_log.jsonl.

Nothing is saved of weights that are no numbers: the loss tells of them a step too late, and a run would go on from them for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_trainers import artefacts, origin
from fl_trainers.device import Device
from fl_trainers.errors import TrainingError
from fl_trainers.loop import Follow
from fl_trainers.progress import Events


def must_be_numbers(model: Any, step: int) -> None:
    """TrainingError where the update of this step has left a trained weight without a value. Of spread weights a process sees its part."""
    import torch

    whole, names = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            part = getattr(weight, "ds_tensor", weight.detach())  # ZeRO-3's
            part = part.to_local() if hasattr(part, "to_local") else part  # FSDP2's
            if part.is_floating_point() and part.numel():
                names.append(name)
                whole.append(torch.isfinite(part).all())
    flags = torch.stack([flag.to(whole[0].device) for flag in whole]).tolist() if whole else []
    bad = [name for name, good in zip(names, flags, strict=True) if not good]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise TrainingError(
            f"the update of step {step} left {bad[0]}{more} without a finite value",
            "a lower learning_rate, `max_grad_norm: 1.0`, warmup_steps, or bf16 in place of fp16; nothing was saved of this step",
        )


def no_numbers(values: dict[str, Any]) -> list[str]:
    """Names of the evaluation losses that are NaN or infinite."""
    losses = {name: value for name, value in values.items() if name.startswith("eval_") and name.endswith("loss")}
    return [name for name, value in losses.items() if isinstance(value, float) and not math.isfinite(value)]


class Watch(Follow):
    """What every stage's Trainer calls back."""

    def __init__(self, events: Events, device: Device, folder: Path, made_of: Callable[[], dict[str, Any]]) -> None:
        super().__init__(events, device, folder)
        self.made_of = made_of

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        super().on_step_end(args, state, control, **more)
        if control.should_save:
            must_be_numbers(self.loop.model, state.global_step)
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if control.should_save:
            must_be_numbers(self.loop.model, state.global_step)
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        super().on_log(args, state, control, logs=logs, **more)
        for name in no_numbers(logs or {}):
            self.events.warn("evaluation", f"the {name.replace('_', ' ')} is no number at step {state.global_step}", step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.is_world_process_zero:
            saved = self.folder / f"checkpoint-{state.global_step}"
            artefacts.share(saved)
            origin.write(saved, self.made_of())
        return super().on_save(args, state, control, **more)

    def _trainer_log(self, state: Any, values: dict[str, Any]) -> None:
        """With eval_on_each_dataset there is no one evaluation loss, and each line has that of its set; what is not known is left out."""
        if values.get("eval_loss", 0) is None and state.log_history:
            last = state.log_history[-1]
            values = {**values, **{key: last[key] for key in last if key.startswith("eval_") and key.endswith("_loss")}}
        super()._trainer_log(state, {key: value for key, value in values.items() if value is not None})
