"""Optimizers that step inside the backward pass, and what GaLore and APOLLO keep beside numbers: both outlive a checkpoint here."""

from __future__ import annotations

import sys
from typing import Any

import torch

PROJECTORS = (
    ("galore_torch.galore_projector", "GaLoreProjector"), ("apollo_torch.svd_projector", "GaLoreProjector"),
    ("apollo_torch.random_projector", "GradientProjector"),
)  # fmt: skip
"""Classes whose objects lie in the optimizer's state: numbers and one matrix each."""


class LayerWise(torch.optim.Optimizer):  # type: ignore[misc]
    """One optimizer a parameter, which steps as soon as its gradient is there, so that no two gradients are held at once.

    Schedulers and checkpoints see one optimizer: the small ones take their rates from its groups and keep their state in its own.
    (transformers' LayerWiseDummyOptimizer has neither in its checkpoints, and its schedules would begin anew.)
    """

    def __init__(self, kind: Any, groups: list[dict[str, Any]], options: dict[str, Any]) -> None:
        """kind: the class of the small ones; options: its keyword arguments, `lr` among them."""
        super().__init__(groups, {"lr": options["lr"]})
        self._each: dict[Any, Any] = {}
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                small = kind([{**group, "params": [parameter]}], **options)
                self.state[parameter].update(small.state[parameter])  # APOLLO draws by a seed that it has put there
                self._each[parameter] = (small, number)
                parameter.register_post_accumulate_grad_hook(self._step_of)

    def _step_of(self, parameter: Any) -> None:
        if parameter.grad is None:
            return
        small, number = self._each[parameter]
        small.state, small.param_groups[0]["lr"] = self.state, self.param_groups[number]["lr"]
        small.step()
        parameter.grad = None

    def step(self, closure: Any = None) -> Any:
        """Everything was done in the backward pass."""
        return closure() if closure is not None else None


def allow_projectors() -> None:
    """Lets torch read them from a checkpoint, where it reads nothing but plain values else."""
    found = [getattr(sys.modules[module], name) for module, name in PROJECTORS if module in sys.modules]
    torch.serialization.add_safe_globals(found)


def place_projectors(optimizer: Any) -> None:
    """Brings what was read from a checkpoint to where the weights are."""
    for parameter, state in optimizer.state.items():
        if not torch.is_tensor(parameter) or "projector" not in state:
            continue
        projector = state["projector"]
        matrix = projector.ortho_matrix
        if torch.is_tensor(matrix):
            projector.ortho_matrix = matrix.to(parameter.device)
        elif isinstance(matrix, list | tuple):
            projector.ortho_matrix = [part.to(parameter.device) for part in matrix]
