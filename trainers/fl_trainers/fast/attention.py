"""Attention over documents that lie one after another in one row: registered in transformers' own table of implementations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

NAME = "fl_documents"
HALF = (torch.bfloat16, torch.float16)


def documents(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0, scaling: float | None = None,
    sliding_window: int | None = None, *, cu_seq_lens_q: Any = None, max_length_q: int | None = None, **_: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Causal attention inside each document. query, key, value: [1, heads, tokens, head size]; the result [1, tokens, heads, head size].

    cu_seq_lens_q: int32 [documents + 1], where each begins and the last one ends; max_length_q: no document is longer;
    sliding_window: a token sees itself and so many less one before it, None: all before it.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise AssertionError("the collator of padding-free batches gives the borders of documents")
    window = sliding_window if sliding_window is not None and sliding_window < max_length_q else None
    if query.is_cuda:
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    if query.device.type == "npu" and window is None and query.dtype in HALF:
        return _ascend(query, key, value, cu_seq_lens_q, scaling), None
    return _each(query, key, value, cu_seq_lens_q, scaling, window), None


def _flash(query: Any, key: Any, value: Any, borders: Any, longest: int, scaling: float | None, window: int | None) -> Any:
    """torch's flash kernel; its varlen module calls the same one and costs 30 ms of launching a step (reference: an 8B model)."""
    # trained weights are float32: rotary positions then leave query and key in float32, and the kernel takes 16 bits only
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else value.dtype
    packed = (part.to(dtype).squeeze(0).transpose(0, 1) for part in (query, key, value))
    seen = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    found = torch.ops.aten._flash_attention_forward(*packed, borders, borders, longest, longest, 0.0, True, False, scale=scaling, **seen)
    return found[0].unsqueeze(0)


def _ascend(query: Any, key: Any, value: Any, borders: Any, scaling: float | None) -> Any:
    """CANN's fused kernel, as transformers calls it. It wants borders as numbers: Step has them on the processor."""
    from transformers.integrations.npu_flash_attention import npu_flash_attn_varlen_func

    packed = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    return npu_flash_attn_varlen_func(*packed, borders, borders, softmax_scale=scaling, causal=True).unsqueeze(0)


def _each(query: Any, key: Any, value: Any, borders: Any, scaling: float | None, window: int | None) -> Any:
    """One call a document, on devices without such a kernel."""
    from torch.nn.functional import scaled_dot_product_attention

    def mask(length: int) -> Any:
        if window is None or length <= window:
            return None
        places = torch.arange(length, device=query.device)
        back = places[:, None] - places[None, :]
        return (back >= 0) & (back < window)

    places = borders.tolist()
    parts = [
        scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], attn_mask=(seen := mask(end - start)),
            is_causal=seen is None, scale=scaling, enable_gqa=True,
        )
        for start, end in pairwise(places)
        if end > start
    ]  # fmt: skip
    return torch.cat(parts, dim=2).transpose(1, 2)


def register() -> None:
    """Makes the name known. transformers makes no mask for a name that has no mask function, and none is needed."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, documents)


@contextmanager
def switched(settings: Any) -> Iterator[None]:
    """For one step: generation and evaluation keep what the model was loaded with. settings: the model's config, read by every layer."""
    before = settings._attn_implementation
    settings._attn_implementation_internal = NAME
    try:
        yield
    finally:
        settings._attn_implementation_internal = before
