"""Figures of a loop beside its loss: noted batch by batch, told as means with the next log line."""

from __future__ import annotations

import math
from typing import Any

import torch


class Noting:
    """Before a Trainer's class in the bases of a loop whose batches hold labels for itself and not for the model."""

    accelerator: Any
    _noted: dict[str, list[Any]]

    def note(self, training: bool, values: dict[str, Any]) -> None:
        """values: by name, one number a row. Those of an evaluation are told apart."""
        self._noted = getattr(self, "_noted", {})
        for name, value in values.items():
            pair = torch.stack([value.sum().float(), torch.tensor(float(value.numel()), device=value.device)])
            self._noted.setdefault(name if training else f"eval_{name}", []).append(pair)

    def noted(self, training: bool) -> dict[str, float]:
        """The means of what was noted since the last time, over all processes; all of them must ask."""
        noted, found = getattr(self, "_noted", {}), {}
        for name in [name for name in sorted(noted) if name.startswith("eval_") != training]:
            total, count = self.accelerator.reduce(torch.stack(noted.pop(name)).sum(0), "sum").tolist()
            found[name.removeprefix("eval_")] = total / count if count else math.nan
        return found

    def prediction_step(self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """The loss alone: what else is wanted of an evaluation was noted."""
        loop: Any = self
        inputs.pop("num_tokens", None)
        inputs = loop._prepare_inputs(inputs)
        with torch.no_grad(), loop.compute_loss_context_manager():
            return loop.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """The means of what was noted since the last time, over all processes."""
        held = next((key[: -len("loss")] for key in logs if key.startswith("eval_") and key.endswith("loss")), "")
        if held or "loss" in logs:
            logs.update({held + name: value for name, value in self.noted(not held).items()})
            chosen, rejected = held + "rewards/chosen", held + "rewards/rejected"
            if chosen in logs and rejected in logs:
                logs[held + "rewards/margins"] = logs[chosen] - logs[rejected]
            for name in [name for name, value in logs.items() if "rewards/" in name and math.isnan(value)]:
                del logs[name]
        loop: Any = super()
        loop.log(logs, *args, **kwargs)
