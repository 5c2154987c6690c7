"""Adam-mini for models of today: heads of any width, experts that are one tensor, norms whose names say `mlp`.

The package takes every head to be as wide as the hidden state divided by their number, every tensor under `mlp` to be a matrix, and as
many processes as CUDA devices. Qwen3 and GLM-4 end its first step for that. Who goes by which rule is therefore said here, by names that
it knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from adam_mini import Adam_mini

BY_NEURON, BY_TENSOR, BY_HEAD = "mlp", "norm", ("q_proj", "k_proj")
"""Names in which the package looks for its rules: one rate a row, one a tensor, one a head. (`bias`: one a weight.)"""


def make(named: Iterable[tuple[str, Any]], settings: Any, **options: Any) -> Any:
    """The optimizer of the trained ones. settings: the config of the model's text part."""
    heads, width = settings.num_attention_heads, settings.hidden_size
    of_head = int(getattr(settings, "head_dim", None) or width // heads) * width
    given = [(_name(name, weight, of_head), _flat(weight)) for name, weight in named if weight.requires_grad]
    made = Adam_mini(named_parameters=given, dim=width, n_heads=heads, verbose=False, **options)
    made.head_numel = of_head
    made.world_size = 1  # every process has all gradients whole
    return made


def _name(name: str, weight: Any, of_head: int) -> str:
    """The name, or one that says by which rule the weight goes."""
    if weight.ndim < 2:
        return name if "bias" in name else f"{BY_TENSOR}: {name.rpartition('.')[2]}"
    if weight.ndim > 2 or (any(part in name for part in BY_HEAD) and weight.numel() % of_head):
        return BY_NEURON
    return name


def _flat(weight: Any) -> Any:
    """A matrix over the same memory, with the same gradients, where the weight is a stack of matrices."""
    if weight.ndim <= 2:
        return weight
    matrix = torch.nn.Parameter(weight.detach().view(-1, weight.shape[-1]))

    def share(whole: Any) -> None:
        matrix.grad = whole.grad.view_as(matrix)

    weight.register_post_accumulate_grad_hook(share)
    return matrix
