"""LLaMA-Factory's own keys that this version acts on, with its types and defaults (version 0.9, transformers keys apart)."""

from __future__ import annotations

from typing import Final

from fl.recipe_grpo import GRPO
from fl.recipe_keys import Key, words
from fl.recipe_methods import METHODS
from fl.recipe_preference import PREFERENCE
from fl.recipe_reward import REWARD

TEMPLATES: Final = words(
    "alpaca bailing bailing_v2 breeze chatglm3 chatml chatml_de cohere cpm4 dbrx deepseek deepseek3 deepseekr1 hy3 deepseekcoder "
    "default dots_ocr empty ernie ernie_nothink ernie_vl exaone falcon falcon_h1 fewshot gemma gemma2 gemma3 gemma3n gemma4 gemma4n "
    "glm4 glm4_moe glm4v glm4_5v glm_ocr glm4_7 glmz1 gpt_oss granite3 granite3_vision granite4 index hunyuan hunyuan_small "
    "hy_dense_1_8b hy_dense_7b intern2 intern_vl intern_s1 keye_vl kimi_vl lfm2 lfm2_vl llama2 llama2_zh llama3 llama4 mllama moonlight "
    "moss_vl llava llava_next llava_next_llama3 llava_next_mistral llava_next_qwen llava_next_yi llava_next_video "
    "llava_next_video_mistral llava_next_video_yi mimo mimo_v2 mimo_vl minicpm_v minicpm_v_4_6 minicpm_o minimax1 minimax2 ministral "
    "mistral mistral_small ministral3 olmo openchat openchat-3.6 opencoder paligemma paligemma_chat phi phi_small phi4 phi4_mini "
    "pixtral qwen qwen3 qwen3_nothink qwen2_audio qwen2_omni qwen3_omni qwen3_omni_nothink qwen2_vl qwen3_vl qwen3_vl_nothink qwen3_5 "
    "qwen3_5_nothink qwen3_6 sailor seed_coder seed_oss smollm smollm2 solar starchat telechat2 vicuna video_llava xuanyuan yi yi_vl "
    "youtu youtu_vl yuan zephyr aeva"
)

TOOL_FORMATS: Final = words("default gemma4 glm4 llama3 lfm2 minimax1 minimax2 mistral qwen qwen3_5 glm4_moe seed_oss ling phi4_mini")
STAGES: Final = ("pt", "sft", "rm", "ppo", "dpo", "kto", "orpo", "simpo", "grpo")
_LORA = ("finetuning_type", ("lora",), "finetuning_type: lora")
_OFT = ("finetuning_type", ("oft",), "finetuning_type: oft")
_ADAPTER = ("finetuning_type", ("lora", "oft"), "finetuning_type: lora and oft")
_FREEZE = ("finetuning_type", ("freeze",), "finetuning_type: freeze")
_SFT = ("stage", ("sft",), "stage: sft")
_PREDICT = ("predict_with_generate", (True,), "predict_with_generate: true")

_MODEL: Final = (
    Key(name="model_name_or_path", kind="str", about="The model: a folder, a hub name, a .gguf file, or builtin/NAME."),
    Key(name="adapter_name_or_path", kind="names", about="Adapters to start from; all but the last are merged first."),
    Key(name="adapter_folder", kind="str", about="Folder that the adapter names are relative to."),
    Key(name="model_revision", kind="str", default="main", about="Branch, tag or commit on the hub."),
    Key(name="cache_dir", kind="str", verdict="translated", note="environment HF_HUB_CACHE", about="Where models from the hub are kept."),
    Key(name="trust_remote_code", kind="bool", default=False, about="Let a model bring its own code."),
    Key(name="resize_vocab", kind="bool", default=False, about="Grow the embedding to the tokenizer's size."),
    Key(name="split_special_tokens", kind="bool", default=False, about="Split special tokens that stand in the data."),
    Key(name="add_tokens", kind="names", about="Tokens to add to the tokenizer."),
    Key(name="add_special_tokens", kind="names", about="Special tokens to add to the tokenizer."),
    Key(name="moe_aux_loss_coef", kind="float", low=0, needs=("stage", ("pt", "sft"), "stages pt and sft"),
        about="Weight of the loss that keeps a model's experts evenly used."),
    Key(name="rope_scaling", kind="str", choices=("linear", "dynamic", "yarn", "llama3"),
        about="How positions are stretched beyond the model's own."),
    Key(name="flash_attn", kind="str", default="auto", choices=("auto", "disabled", "sdpa", "fa2", "fa3"),
        about="Attention implementation."),
    Key(name="enable_liger_kernel", kind="bool", default=False, about="Liger's fused kernels."),
    Key(name="disable_gradient_checkpointing", kind="bool", default=False, about="Keep all activations: faster, more memory."),
    Key(name="use_reentrant_gc", kind="bool", default=True, about="Reentrant gradient checkpointing."),
    Key(name="upcast_layernorm", kind="bool", default=False, about="Layer norms in fp32."),
    Key(name="upcast_lmhead_output", kind="bool", default=False, about="Logits in fp32."),
    Key(name="train_from_scratch", kind="bool", default=False, about="Random weights of the model's shape."),
    Key(name="use_unsloth_gc", kind="bool", default=False, verdict="translated",
        note="ordinary gradient checkpointing: same numbers, more device memory",
        about="Unsloth's gradient checkpointing."),
    Key(name="quantization_bit", kind="int", choices=(4, 8), about="Load the base model in 4 or 8 bits (QLoRA)."),
    Key(name="quantization_method", kind="str", default="bnb",
        choices=("bnb", "gptq", "awq", "aqlm", "quanto", "eetq", "hqq", "mxfp4", "fp8"),
        about="How the base model is quantized."),
    Key(name="quantization_type", kind="str", default="nf4", choices=("fp4", "nf4"), about="Number format of 4 bits."),
    Key(name="double_quantization", kind="bool", default=True, about="Quantize the scales as well."),
)

_DATA: Final = (
    Key(name="template", kind="str", choices=TEMPLATES, about="Chat template by name; without it the tokenizer's own."),
    Key(name="dataset", kind="names", about="Data sets of dataset_info.json to train on."),
    Key(name="eval_dataset", kind="names", about="Data sets to evaluate on."),
    Key(name="dataset_dir", kind="str", default="data", about="Folder of dataset_info.json and the files, or ONLINE for hub names."),
    Key(name="cutoff_len", kind="int", default=2048, low=1, about="Longest sequence, in tokens."),
    Key(name="train_on_prompt", kind="bool", default=False, needs=_SFT, about="Count the loss on prompts too."),
    Key(name="mask_history", kind="bool", default=False, needs=_SFT, about="Count the loss on the last turn only."),
    Key(name="streaming", kind="bool", default=False, about="Read rows while training goes on; needs max_steps."),
    Key(name="tokenized_path", kind="str", about="Folder where the rows of token ids are kept and read again."),
    Key(name="buffer_size", kind="int", default=16384, low=1, needs=("streaming", (True,), "streaming: true"),
        about="Rows shuffled at once when streaming."),
    Key(name="mix_strategy", kind="str", default="concat", choices=("concat", "interleave_under", "interleave_over", "interleave_once"),
        about="How several data sets are joined."),
    Key(name="interleave_probs", kind="floats", about="Share of each data set when interleaving."),
    Key(name="preprocessing_batch_size", kind="int", default=1000, low=1,
        about="Rows handled at once; packing fills sequences within a batch."),
    Key(name="preprocessing_num_workers", kind="int", low=1, verdict="translated", note="threads of the tokenizer, no more than processors",
        about="Threads that tokenize the rows."),
    Key(name="max_samples", kind="int", low=1, about="Use only so many rows of each data set."),
    Key(name="val_size", kind="float", default=0.0, low=0, about="Rows held back for evaluation: a share below 1, or a number."),
    Key(name="eval_on_each_dataset", kind="bool", default=False, about="Evaluate each data set by itself."),
    Key(name="eval_num_beams", kind="int", low=1, verdict="translated", note="generation_num_beams", about="Beams in evaluation."),
    Key(name="ignore_pad_token_for_loss", kind="bool", default=True, about="Padding does not count in the loss."),
    Key(name="packing", kind="bool", null=True, about="Several rows in one sequence; by default only in pre-training."),
    Key(name="neat_packing", kind="bool", default=False, about="The same as packing: rows of a pack see nothing of each other."),
    Key(name="default_system", kind="str", about="System message where a row has none."),
    Key(name="enable_thinking", kind="bool", default=True, null=True,
        about="Whether reasoning models think in their answers; null: as each row does."),
    Key(name="tool_format", kind="str", choices=TOOL_FORMATS, about="How tools and calls are written, in place of the template's way."),
    Key(name="preserve_thinking", kind="bool", default=False,
        about="Keep thoughts of earlier answers where only the last answer is learned."),
    Key(name="disable_shuffling", kind="bool", default=False, about="Train in the order of the data."),
)

_METHOD: Final = (
    Key(name="stage", kind="str", default="sft", choices=STAGES,
        about="What is trained: pt (text), sft (instructions), dpo, orpo, simpo, rm (pairs), kto (liked or not), ppo, grpo (rewards)."),
    Key(name="finetuning_type", kind="str", default="lora", choices=("lora", "oft", "freeze", "full"), about="Which weights are trained."),
    Key(name="pure_bf16", kind="bool", default=False, about="Weights and optimizer in bf16, without autocast."),
    Key(name="compute_accuracy", kind="bool", default=False, needs=("stage", ("sft", "ppo", "grpo"), "stage: sft"),
        about="Token accuracy in evaluation."),
    Key(name="early_stopping_steps", kind="int", low=1, about="Stop after so many evaluations without progress."),
    Key(name="plot_loss", kind="bool", default=False, about="Draw training_loss.png."),
    Key(name="freeze_trainable_layers", kind="int", default=2, needs=_FREEZE, about="Layers to train: n the last ones, -n the first ones."),
    Key(name="freeze_trainable_modules", kind="names", default=("all",), needs=_FREEZE, about="Modules of those layers."),
    Key(name="freeze_extra_modules", kind="names", needs=_FREEZE, about="Modules outside the layers."),
    Key(name="lora_rank", kind="int", default=8, low=1, needs=_LORA, about="Rank."),
    Key(name="lora_alpha", kind="int", low=1, needs=_LORA, about="Scale; twice the rank if not set."),
    Key(name="lora_dropout", kind="float", default=0.0, low=0, below=1, needs=_LORA, about="Dropout."),
    Key(name="lora_target", kind="names", default=("all",), needs=_LORA, about="Modules, or all linear ones."),
    Key(name="additional_target", kind="names", needs=_ADAPTER, about="Modules trained in full beside the adapter."),
    Key(name="loraplus_lr_ratio", kind="float", above=0, about="LoRA+: learning rate of B over that of A."),
    Key(name="loraplus_lr_embedding", kind="float", default=1e-6, low=0, needs=_LORA, about="LoRA+: learning rate of embeddings."),
    Key(name="use_rslora", kind="bool", default=False, about="Rank-stabilized LoRA."),
    Key(name="use_dora", kind="bool", default=False, about="DoRA."),
    Key(name="pissa_init", kind="bool", default=False, about="Start from the principal components."),
    Key(name="pissa_iter", kind="int", default=16, low=-1, needs=("pissa_init", (True,), "pissa_init: true"),
        about="Iterations of the fast SVD; -1: full SVD."),
    Key(name="pissa_convert", kind="bool", default=False, needs=("pissa_init", (True,), "pissa_init: true"),
        about="Save what was learned as an ordinary LoRA too, in pissa_converted."),
    Key(name="create_new_adapter", kind="bool", default=False, needs=_ADAPTER,
        about="A new adapter instead of going on with the last one."),
    Key(name="oft_rank", kind="int", default=0, low=0, needs=_OFT, about="Number of blocks; 0: by block size."),
    Key(name="oft_block_size", kind="int", default=32, low=0, needs=_OFT, about="Block size; 0: by rank."),
    Key(name="oft_target", kind="names", default=("all",), needs=_OFT, about="Modules, or all linear ones."),
    Key(name="module_dropout", kind="float", default=0.0, low=0, below=1, needs=_OFT, about="Dropout of whole blocks."),
    Key(name="overwrite_output_dir", kind="bool", default=False, about="Start anew, although output_dir has a checkpoint."),
)

_GENERATION: Final = (
    Key(name="predict_with_generate", kind="bool", default=False, about="Evaluate by generated answers too: BLEU-4 and ROUGE."),
    Key(name="do_predict", kind="bool", default=False, about="Answer all evaluation rows into generated_predictions.jsonl."),
    Key(name="do_sample", kind="bool", default=True, needs=_PREDICT, about="Sample instead of the most likely token."),
    Key(name="temperature", kind="float", default=0.95, low=0, needs=_PREDICT, about="Temperature."),
    Key(name="top_p", kind="float", default=0.7, above=0, high=1, needs=_PREDICT, about="Nucleus."),
    Key(name="top_k", kind="int", default=50, low=0, needs=_PREDICT, about="Most likely tokens to sample from."),
    Key(name="num_beams", kind="int", default=1, low=1, needs=_PREDICT, about="Beams."),
    Key(name="max_new_tokens", kind="int", default=1024, low=1, needs=_PREDICT, about="Longest answer."),
    Key(name="repetition_penalty", kind="float", default=1.0, above=0, needs=_PREDICT, about="Above 1: fewer repetitions."),
    Key(name="length_penalty", kind="float", default=1.0, needs=_PREDICT, about="Of beam search."),
    Key(name="skip_special_tokens", kind="bool", default=True, needs=_PREDICT, about="Leave special tokens out of the text."),
)

HANDLED: Final = (*_MODEL, *_DATA, *_METHOD, *METHODS, *GRPO, *PREFERENCE, *REWARD, *_GENERATION)
