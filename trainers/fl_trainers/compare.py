"""The same questions before and after training, answered greedily."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

LENGTH = 48
"""New tokens at most; the comparison shall take seconds, not be complete."""


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], *, thinking: bool | None, default_system: str | None = None) -> list[str]:
    """One answer a prompt, all in one left-padded batch. The model is left in the mode it was in."""
    import torch

    if not prompts:
        return []
    extra = {} if thinking is None else {"enable_thinking": False}
    system = [{"role": "system", "content": default_system}] if default_system else []
    texts = [
        tokenizer.apply_chat_template([*system, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, **extra)
        for prompt in prompts
    ]
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt", return_token_type_ids=False)
    tokenizer.padding_side = side
    place = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        made = model.generate(
            input_ids=batch["input_ids"].to(place), attention_mask=batch["attention_mask"].to(place), max_new_tokens=LENGTH,
            do_sample=False, use_cache=True, temperature=None, top_p=None, top_k=None, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    model.train(was_training)
    width = batch["input_ids"].shape[1]
    return [text.strip() for text in tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)]


def without_adapter(model: Any) -> Any:
    """A context in which the model answers as it did before training, where an adapter holds all that was learned."""
    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
