"""The built-in tiny models: seeded random weights and a tokenizer trained on the data of the run. For tests, not for use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fl_trainers.errors import InputError

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "builtin/tiny-llama": ("Llama", {}),
    "builtin/tiny-qwen3": ("Qwen3", {"head_dim": 16}),
    "builtin/tiny-qwen3-moe": ("Qwen3Moe", {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "output_router_logits": True,
    }),
    "builtin/tiny-gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
                                       "layer_types": ["sliding_attention", "full_attention"]}),
    "builtin/tiny-glm4": ("Glm4", {"head_dim": 16, "pad_token_id": 0}),
    "builtin/tiny-deepseek-v3": ("DeepseekV3", {
        "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    }),
    "builtin/tiny-phi3": ("Phi3", {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}),
    "builtin/tiny-mistral": ("Mistral", {"head_dim": 16, "sliding_window": 8}),
}  # fmt: skip
"""Name → transformers' name of the architecture, and what its config has beside the common shape."""
NAMES = tuple(SHAPES)
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
    import transformers

    if name not in SHAPES:
        raise InputError(f"unknown built-in model {name}", f"there are {', '.join(NAMES)}")
    architecture, own = SHAPES[name]
    shape: dict[str, Any] = {
        "vocab_size": (vocabulary + 7) // 8 * 8, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    settings = getattr(transformers, f"{architecture}TextConfig", None) or getattr(transformers, f"{architecture}Config")
    transformers.set_seed(seed)
    return getattr(transformers, f"{architecture}ForCausalLM")(settings(**{**shape, **own}))
