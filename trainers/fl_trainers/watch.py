"""Follow, with what a checkpoint was made of beside it, and the losses of each evaluated data set in trainer_log.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_trainers import origin
from fl_trainers.device import Device
from fl_trainers.loop import Follow
from fl_trainers.progress import Events


class Watch(Follow):
    """What every stage's Trainer calls back."""

    def __init__(self, events: Events, device: Device, folder: Path, made_of: Callable[[], dict[str, Any]]) -> None:
        super().__init__(events, device, folder)
        self.made_of = made_of

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.is_world_process_zero:
            origin.write(self.folder / f"checkpoint-{state.global_step}", self.made_of())
        return super().on_save(args, state, control, **more)

    def _trainer_log(self, state: Any, values: dict[str, Any]) -> None:
        """With eval_on_each_dataset there is no one evaluation loss, and each line has that of its set; what is not known is left out."""
        if values.get("eval_loss", 0) is None and state.log_history:
            last = state.log_history[-1]
            values = {**values, **{key: last[key] for key in last if key.startswith("eval_") and key.endswith("_loss")}}
        super()._trainer_log(state, {key: value for key, value in values.items() if value is not None})
