"""A causal language model with a value head, as LLaMA-Factory and TRL have it: one linear layer over the last hidden states.

The head lies beside the model or adapter as `value_head.safetensors`, under the names `v_head.summary.weight` and `v_head.summary.bias`.
`value_head.bin`, which older LLaMA-Factory writes, is read too, and so is the `score` layer of a model for sequence classification, which
is what other makers of reward models publish.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_trainers import weight_files
from fl_trainers.errors import InputError

FILE, OLD_FILE = "value_head.safetensors", "value_head.bin"
CLASSIFIER = "ForSequenceClassification"
NAMES = {"summary.weight": "v_head.summary.weight", "summary.bias": "v_head.summary.bias"}
_DELEGATED = frozenset((
    "config", "generation_config", "name_or_path", "main_input_name", "device", "dtype", "generate", "disable_adapter", "peft_config",
    "get_input_embeddings", "get_output_embeddings", "get_base_model", "gradient_checkpointing_enable", "gradient_checkpointing_disable",
    "activation_checkpointing_enable", "activation_checkpointing_disable", "warnings_issued", "_no_split_modules",
))  # fmt: skip
"""What callers ask of the model inside. Not more: the Trainer would take the whole for a bare quantized model."""


class Head(nn.Module):  # type: ignore[misc]
    """One number for each hidden state, in float32 whatever the model computes in, unless DeepSpeed or FSDP has cast the whole."""

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        """dropout: TRL's, which LLaMA-Factory leaves on."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.summary = nn.Linear(width, 1, dtype=torch.float32)

    def forward(self, hidden: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.summary(self.dropout(hidden.float()).to(self.summary.weight.dtype)).squeeze(-1).float()


class WithValueHead(nn.Module):  # type: ignore[misc]
    """Base of Scorer and Actor: the model and the head, named as in TRL."""

    one_unit = False
    """While FSDP spreads the weights: embeddings and logits stay with the head, since who asks for scores never asks for logits."""

    def __init__(self, model: Any, dropout: float = 0.1) -> None:
        super().__init__()
        self.pretrained_model = model
        self.v_head = Head(width_of(model), dropout).to(next(model.parameters()).device)

    def __getattr__(self, name: str) -> Any:
        if self.one_unit and name in ("get_input_embeddings", "get_output_embeddings"):
            raise AttributeError(name)
        if name in _DELEGATED:
            return getattr(super().__getattr__("pretrained_model"), name)
        return super().__getattr__(name)


class Scorer(WithValueHead):
    """A reward model: one number a row."""

    def forward(self, input_ids: Any, attention_mask: Any, flat: bool = False) -> Any:
        """flat: without the padding; the model's attention then knows of borders (fast/attention.py)."""
        if not flat:
            return score(self.pretrained_model, self.v_head, input_ids, attention_mask)
        batch = joined(input_ids, attention_mask.bool())
        hidden = _hidden(self.pretrained_model, **batch, use_cache=False).squeeze(0)
        return self.v_head(hidden[batch["cu_seq_lens_q"][1:].long() - 1])


JOINED = ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def joined(ids: Any, mask: Any) -> dict[str, Any]:
    """A right-padded batch as rows one after another, and the borders between them: what a model is given. mask: of bools."""
    lengths = mask.sum(1)
    borders, longest = nn.functional.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max())
    given = (ids[mask][None], (mask.cumsum(1) - 1)[mask][None], borders, borders, longest, longest)
    return dict(zip(JOINED, given, strict=True))


def score(model: Any, head: Head, input_ids: Any, attention_mask: Any) -> Any:
    """The value of each row's last token. Rows are padded on the right."""
    hidden = _hidden(model, input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    last = attention_mask.sum(-1) - 1
    return head(hidden[torch.arange(len(last), device=last.device), last])


def plain(model: Any) -> Any:
    """The model without what peft has put around it; its layers still hold the adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def width_of(model: Any) -> int:
    """Length of a hidden state."""
    settings = plain(model).config
    settings = getattr(settings, "text_config", None) or settings
    return int(getattr(settings, "word_embed_proj_dim", None) or settings.hidden_size)


def _hidden(model: Any, **given: Any) -> Any:
    """The last hidden states, without the logits, which nobody needs, where the model has a body of its own."""
    whole = plain(model)
    body = whole.base_model
    if body is whole:
        return whole(**given, output_hidden_states=True).hidden_states[-1]
    return body(**given).last_hidden_state


def leave_out_logits(model: Any) -> None:
    """A head that makes logits has no part in scores: it is not trained, unless it is the embedding as well."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None:
        shared = {id(weight) for weight in embedding.parameters()}
        for weight in head.parameters():
            if id(weight) not in shared:
                weight.requires_grad_(False)


def save(model: WithValueHead, folder: str, state: dict[str, Any] | None = None) -> None:
    """Model or adapter as its users load it, and the head beside it. state: all weights, where an engine holds them."""
    from safetensors.torch import save_file

    inner = None
    if state is not None:
        inner = {name.removeprefix("pretrained_model."): value for name, value in state.items() if not name.startswith("v_head.")}
    own = {"selected_adapters": ["default"]} if hasattr(model.pretrained_model, "peft_config") else {}  # others only judge
    model.pretrained_model.save_pretrained(folder, state_dict=inner, **own)
    found = model.v_head.state_dict() if state is None else {name: state[key] for name, key in NAMES.items()}
    weights = {key: found[name].detach().float().cpu().contiguous() for name, key in NAMES.items()}
    save_file(weights, Path(folder) / FILE, metadata={"format": "pt"})


def read(source: str, revision: str = "main") -> dict[str, Any] | None:
    """The head's weights in a folder or a repository of the hub; None: it has none."""
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    for name in (FILE, OLD_FILE):
        with contextlib.suppress(OSError):
            path = cached_file(source, name, revision=revision)
            if path is not None:
                if name == FILE and (why := weight_files.fault(Path(path))):
                    raise InputError(f"{path}: {why}", "copy the reward model again")
                found = load_file(path) if name == FILE else torch.load(path, map_location="cpu", weights_only=True)
                return {name: found[key] for name, key in NAMES.items() if key in found}
    return _classifier(source, revision)


def _classifier(source: str, revision: str) -> dict[str, Any] | None:
    """The one row of a sequence classifier's `score` layer, with a bias of 0 where it has none."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    def file(name: str) -> Path | None:
        with contextlib.suppress(OSError):
            path = cached_file(source, name, revision=revision)
            return None if path is None else Path(path)
        return None

    settings, index = file("config.json"), file("model.safetensors.index.json")
    if settings is None or not any(CLASSIFIER in name for name in json.loads(settings.read_text()).get("architectures") or ()):
        return None
    parts = json.loads(index.read_text())["weight_map"] if index is not None else {}
    weights = file(parts.get("score.weight", "model.safetensors"))
    if weights is None:
        return None
    with safe_open(weights, "pt") as opened:
        names = set(opened.keys())
        if "score.weight" not in names:
            return None
        bias = opened.get_tensor("score.bias") if "score.bias" in names else torch.zeros(1)
        return {"summary.weight": opened.get_tensor("score.weight"), "summary.bias": bias}


def load(head: Head, source: str, key: str, revision: str = "main") -> bool:
    """Fills the head from a folder; False: it holds none. InputError naming the recipe's key where it is another model's."""
    found = read(source, revision)
    if found is None:
        return False
    wanted = {name: tuple(weight.shape) for name, weight in head.state_dict().items()}
    shapes = {name: tuple(weight.shape) for name, weight in found.items()}
    if shapes != wanted:
        raise InputError(
            f"{key}: the value head of {source} has the shapes {shapes}, this model needs {wanted}",
            "a value head that was trained on this base",
        )
    head.load_state_dict({name: weight.float() for name, weight in found.items()})
    return True
