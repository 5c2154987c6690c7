"""The built-in tiny models: seeded random weights and a tokenizer trained on the data of the run. For tests, not for use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fl_trainers.errors import InputError

NAMES = ("builtin/tiny-qwen3", "builtin/tiny-llama")
VOCABULARY = 800
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(texts: Iterable[str], chat_template: str) -> Any:
    """A byte-level BPE over the run's own texts: the same texts in the same order give the same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = re.findall(r"<\|[^|<>\s]+\|>|<[a-z_]+>|</[a-z_]+>", chat_template)
    special = list(dict.fromkeys([*SPECIAL, *marks]))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>")
    made.chat_template = chat_template
    return made


def model(name: str, vocabulary: int, seed: int) -> Any:
    """Two layers of width 64, weights drawn from the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, set_seed

    shape: dict[str, Any] = {
        "vocab_size": (vocabulary + 7) // 8 * 8, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    set_seed(seed)
    if name == "builtin/tiny-qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16))
    if name == "builtin/tiny-llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    raise InputError(f"unknown built-in model {name}", f"there are {', '.join(NAMES)}")
