"""Keys that depend on each other. Each rule yields the key to blame and what is wrong, in words that say what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from fl import recipe_grpo, recipe_media, recipe_predict, recipe_preference, recipe_reward
from fl.recipe_streaming import rule as streaming

Get = Callable[[str], Any]
Rule = Callable[[Get], Iterator[tuple[str, str]]]


def _work(get: Get) -> Iterator[tuple[str, str]]:
    if not (get("do_train") or get("do_eval") or get("do_predict")):
        yield "do_train", "nothing to do: none of do_train, do_eval and do_predict is true; write `do_train: true`"
    if not get("model_name_or_path"):
        yield "model_name_or_path", "missing: which model? A folder, a hub name, or `builtin/smollm2-135m`"
    if not get("output_dir"):
        yield "output_dir", "missing: where may the training write?"
    if get("do_train") and not get("dataset") and not get("tokenized_path"):
        yield "dataset", "missing: which data set of dataset_info.json is trained on?"
    if get("dataset_dir").startswith("REMOTE:"):
        yield "dataset_dir", "a remote dataset_info.json is not read in this version; copy it into a folder, or write `dataset_dir: ONLINE`"


def _stage(get: Get) -> Iterator[tuple[str, str]]:
    stage = get("stage")
    if get("neat_packing") and stage != "sft":
        yield "neat_packing", "only with `stage: sft`"


def _data(get: Get) -> Iterator[tuple[str, str]]:
    if get("neat_packing") and get("packing") is False:
        yield "packing", "neat_packing packs: write `packing: true`, or delete one of the two"
    if (get("packing") or get("neat_packing")) and get("cutoff_len") < 2:
        yield "cutoff_len", "packing needs at least 2 tokens"
    if get("mask_history") and get("train_on_prompt"):
        yield "mask_history", "not together with train_on_prompt: one leaves the prompts out, the other counts them"
    if get("val_size") and get("eval_dataset"):
        yield "val_size", "not together with eval_dataset: evaluate on rows held back, or on data of their own"
    if get("val_size") and not get("dataset"):
        yield "val_size", "there is no dataset to hold rows back from"
    if get("val_size") > 1 and not float(get("val_size")).is_integer():
        yield "val_size", "a share below 1, or a whole number of rows"
    yield from streaming(get)
    probabilities = get("interleave_probs")
    if probabilities:
        if get("mix_strategy") == "concat":
            yield "interleave_probs", "only with mix_strategy interleave_under, interleave_over or interleave_once"
        if len(probabilities) != len(get("dataset") or ()):
            yield "interleave_probs", f"{len(probabilities)} shares for {len(get('dataset') or ())} data sets"
        if any(p <= 0 for p in probabilities) or abs(sum(probabilities) - 1) > 0.01:
            yield "interleave_probs", f"the shares must be positive and add up to 1, found {sum(probabilities):g}"


def _weights(get: Get) -> Iterator[tuple[str, str]]:
    kind = get("finetuning_type")
    adapters = get("adapter_name_or_path") or ()
    if get("quantization_bit"):
        if get("quantization_method") != "bnb":
            yield "quantization_method", f"this version quantizes with bnb only, not {get('quantization_method')}"
        if kind not in ("lora", "oft"):
            yield "quantization_bit", f"a quantized model is trained with `finetuning_type: lora` or `oft`, not {kind}"
        if get("resize_vocab"):
            yield "resize_vocab", "the embedding of a quantized model cannot grow"
        if get("train_from_scratch"):
            yield "train_from_scratch", "random weights are not quantized"
        if len(adapters) > 1 or (adapters and get("create_new_adapter")):
            yield "adapter_name_or_path", "adapters cannot be merged into a quantized model; continue a single one"
    if adapters and kind not in ("lora", "oft"):
        yield "adapter_name_or_path", f"adapters are continued with `finetuning_type: lora` or `oft`, not {kind}"
    for name in ("loraplus_lr_ratio", "pissa_init", "use_dora", "use_rslora"):
        if get(name) and kind != "lora":
            yield name, f"only with `finetuning_type: lora`, not {kind}"
    if get("pissa_init") and get("quantization_bit"):
        yield "pissa_init", "needs the weights as they are: not together with quantization_bit"
    if kind == "oft" and bool(get("oft_rank")) == bool(get("oft_block_size")):
        yield "oft_block_size", "exactly one of oft_rank and oft_block_size must be other than 0"
    if kind == "freeze" and get("freeze_trainable_layers") == 0:
        yield "freeze_trainable_layers", "0 trains no layer: n trains the last n, -n the first n"
    elif get("use_llama_pro") and get("freeze_trainable_layers") < 1:
        yield "freeze_trainable_layers", "with use_llama_pro the number of layers that were added"


_OWN_OPTIMIZERS: Final = ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon")
_OWN_LOSSES: Final = ("use_dft_loss", "use_asft_loss", "use_eaft_loss")


def _methods(get: Get) -> Iterator[tuple[str, str]]:
    """Optimizers and losses of which there can be one."""
    asked = [name for name in (*_OWN_OPTIMIZERS, "loraplus_lr_ratio") if get(name)]
    if len(asked) > 1:
        yield asked[-1], f"one optimizer: not together with {asked[0]}"
    kind = get("finetuning_type")
    for name in asked:
        if name in ("use_galore", "use_apollo", "use_badam") and kind in ("lora", "oft"):
            yield name, f"saves the optimizer's memory of whole matrices; an adapter has none: `finetuning_type: full`, not {kind}"
        elif name in _OWN_OPTIMIZERS and (get("deepspeed") or get("fsdp")):
            yield name, f"needs whole matrices: not together with {'deepspeed' if get('deepspeed') else 'fsdp'}"
    for name in ("galore", "apollo"):
        if get(f"use_{name}") and get(f"{name}_layerwise") and get("gradient_accumulation_steps") != 1:
            yield f"{name}_layerwise", "steps inside the backward pass: `gradient_accumulation_steps: 1`"
    losses = [name for name in _OWN_LOSSES if get(name)]
    if len(losses) > 1:
        yield losses[-1], f"one loss: not together with {losses[0]}"
    if losses and get("stage") == "sft" and (get("enable_liger_kernel") or get("use_liger_kernel")):
        yield "enable_liger_kernel" if get("enable_liger_kernel") else "use_liger_kernel", f"its fused loss keeps no logits for {losses[0]}"
    if losses and get("label_smoothing_factor"):
        yield "label_smoothing_factor", f"not together with {losses[0]}, which is a loss of its own"


def _numbers(get: Get) -> Iterator[tuple[str, str]]:
    if get("bf16") and get("fp16"):
        yield "fp16", "one of bf16 and fp16, not both"
    if get("pure_bf16") and get("fp16"):
        yield "fp16", "not together with pure_bf16"
    if get("pure_bf16") and get("upcast_layernorm"):
        yield "upcast_layernorm", "not together with pure_bf16: without autocast the layers behind a float32 norm cannot take its output"
    schedule, options = get("lr_scheduler_type"), get("lr_scheduler_kwargs") or {}
    if schedule.endswith("_with_min_lr") and isinstance(options, dict) and not {"min_lr", "min_lr_rate"} & set(options):
        yield "lr_scheduler_type", f"{schedule} needs `lr_scheduler_kwargs: {{min_lr_rate: 0.1}}`, or another min_lr or min_lr_rate"
    if get("deepspeed") and get("fsdp"):
        yield "fsdp", "one of deepspeed and fsdp, not both"


def _evaluation(get: Get) -> Iterator[tuple[str, str]]:
    strategy = get("eval_strategy")
    has_rows = bool(get("eval_dataset")) or get("val_size") > 0
    for name, on in (("eval_strategy", strategy != "no"), ("do_eval", get("do_eval"))):
        if on and not has_rows:
            yield name, "needs rows to work on: set val_size or eval_dataset"
    if get("load_best_model_at_end"):
        if strategy == "no":
            yield "load_best_model_at_end", "needs an evaluation: set eval_strategy"
        elif get("save_strategy") not in (strategy, "best"):
            yield "load_best_model_at_end", f"save_strategy ({get('save_strategy')}) must be eval_strategy's ({strategy})"
    if get("early_stopping_steps") and strategy == "no":
        yield "early_stopping_steps", "needs an evaluation: set eval_strategy"


def _shapes(get: Get) -> Iterator[tuple[str, str]]:
    """Values of several types, which the table of keys cannot describe."""
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        options = get(name)
        if options is not None and (not isinstance(options, dict) or set(options) - {"use_reentrant"}):
            yield name, "only {use_reentrant: true} or {use_reentrant: false}"
    if not isinstance(get("resume_from_checkpoint"), str | bool | None):
        yield "resume_from_checkpoint", "wanted a checkpoint folder, or true for the last one of output_dir"
    fsdp = get("fsdp")
    if not isinstance(fsdp, str | bool | list | None) or (isinstance(fsdp, list) and not all(isinstance(item, str) for item in fsdp)):
        yield "fsdp", "wanted true, or options such as `full_shard auto_wrap`"


RULES: Final[tuple[Rule, ...]] = (_work, _stage, _data, _weights, _methods, _numbers, _evaluation, _shapes, recipe_grpo.rule,
                                        recipe_media.rule, recipe_predict.rule, recipe_preference.rule, recipe_reward.rule)  # fmt: skip
