"""Whether the rows of a pack are apart for a model: its attention is told by their positions, its other layers may know nothing of them."""

from __future__ import annotations

from typing import Any

from fl_trainers.errors import InputError

LENGTH = 6
"""Tokens of each of the two rows that are tried: more than a convolution's reach of three or four."""
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that go by a mask, as configs name them."""


def must_hold(model: Any, mixed: Any = None, *, tried: bool = True) -> None:
    """Raises InputError where a token of one row changes what the model says in the next one of the pack.

    mixed: the dtype of autocast, if any. tried: the model is asked too, and not only its config.
    """
    import torch

    settings = model.config
    kinds = sorted(set(getattr(settings, "layer_types", None) or ()) - ATTENTION)
    exact = mixed is None and all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
    if kinds or (tried and leak(model, mixed) > (1e-5 if exact else 1e-2)):  # experts take their tokens in groups, which round otherwise
        raise InputError(
            f"packing: the layers of {settings.model_type} ({', '.join(kinds) or 'attention that goes by no positions'}) carry tokens over "
            "the borders of the rows in a pack",
            "`packing: false` and `neat_packing: false`: rows are padded instead",
        )


def leak(model: Any, mixed: Any = None) -> float:
    """How much the logits of a row change with the row before it in the pack, as a share of the largest."""
    import torch

    place = next(model.parameters()).device
    size = model.get_input_embeddings().num_embeddings
    row = torch.arange(LENGTH, device=place)
    first, other, second = ((row * step + start) % size for step, start in ((3, 1), (5, 2), (7, 3)))
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(place.type, mixed, enabled=mixed is not None):
        one, two = (
            model(input_ids=torch.cat([before, second])[None], position_ids=torch.cat([row, row])[None], use_cache=False).logits[0, LENGTH:]
            for before in (first, other)
        )
    model.train(was_training)
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-9))
