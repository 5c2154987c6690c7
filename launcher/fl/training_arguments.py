"""The keys of transformers' TrainingArguments (Seq2Seq's included), version 5.24.0, and those of older versions that recipes still carry.

Names, types, defaults and choices are those of its dataclass. Most are handed to it as they are; the notes name the others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fl.recipe_keys import Key, Kind, words

_SCHEDULERS: Final = words(
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt reduce_lr_on_plateau cosine_with_min_lr "
    "cosine_warmup_with_min_lr warmup_stable_decay greedy"
)
_OPTIMIZERS: Final = words(
    "adamw_torch adamw_torch_fused adamw_torch_xla adamw_torch_npu_fused adafactor adamw_anyprecision adamw_torch_4bit adamw_torch_8bit "
    "ademamix sgd adagrad adamw_bnb_8bit adamw_8bit ademamix_8bit lion_8bit lion_32bit paged_adamw_32bit paged_adamw_8bit "
    "paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit "
    "galore_adamw galore_adamw_8bit galore_adafactor galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo "
    "adalomo grokadamw schedule_free_radam schedule_free_adamw schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw"
)
_TRACKERS: Final = words(
    "none all tensorboard wandb mlflow swanlab trackio azure_ml comet_ml neptune codecarbon clearml dagshub flyte dvclive kubeflow"
)
_INTERVALS: Final = ("no", "steps", "epoch")
_LEVELS: Final = ("debug", "info", "warning", "error", "critical", "passive")


def _keys(kind: Kind, **defaults: object) -> tuple[Key, ...]:
    """Keys without a range, handed over as they are."""
    return tuple(Key(name=name, kind=kind, default=default, owner="transformers",
        about=f"TrainingArguments.{name}.") for name, default in defaults.items())


def _key(name: str, kind: Kind, default: object = None, about: str = "", *, low: float | None = None, above: float | None = None,
         high: float | None = None, choices: tuple[str, ...] = ()) -> Key:
    return Key(name=name, kind=kind, default=default,
        about=about or f"TrainingArguments.{name}.", low=low, above=above, high=high, choices=choices,
               owner="transformers")


def _other(keys: tuple[Key, ...], note: str) -> tuple[Key, ...]:
    """The same keys, ignored."""
    return tuple(replace(key, verdict="ignored", note=note) for key in keys)


_LOOP: Final = (
    _key("output_dir", "str", about="Folder of everything that the training writes."),
    _key("do_train", "bool", False, "Train."),
    _key("do_eval", "bool", False, "Evaluate after training."),
    _key("resume_from_checkpoint", "any", about="A checkpoint folder, or true for the last one of output_dir."),
    _key("per_device_train_batch_size", "int", 8, "Rows a step and device.", low=1),
    _key("per_device_eval_batch_size", "int", 8, "Rows a step and device in evaluation.", low=1),
    _key("gradient_accumulation_steps", "int", 1, "Batches that make one step.", low=1),
    _key("num_train_epochs", "float", 3.0, "Passes over the data.", above=0),
    _key("max_steps", "int", -1, "Steps in all; -1: as many as num_train_epochs gives.", low=-1),
    _key("learning_rate", "float", 5e-5, "Largest learning rate.", low=0),
    _key("lr_scheduler_type", "str", "linear", "How the learning rate changes.", choices=_SCHEDULERS),
    _key("warmup_steps", "float", 0, "Steps of rising learning rate; below 1 a share of all steps.", low=0),
    _key("optim", "str", "adamw_torch_fused", "Optimizer.", choices=_OPTIMIZERS),
    _key("weight_decay", "float", 0.0, "Weight decay.", low=0),
    _key("adam_beta1", "float", 0.9, low=0, high=1),
    _key("adam_beta2", "float", 0.999, low=0, high=1),
    _key("adam_epsilon", "float", 1e-8, low=0),
    _key("max_grad_norm", "float", 1.0, "Gradients are cut to this norm; 0: not cut.", low=0),
    _key("label_smoothing_factor", "float", 0.0, low=0, high=1),
    _key("neftune_noise_alpha", "float", about="NEFTune noise on embeddings.", low=0),
    _key("seed", "int", 42, "Seed of everything random.", low=0),
    _key("data_seed", "int", about="Seed of the order of the data.", low=0),
    _key("bf16", "bool", False, "Compute in bf16."),
    _key("fp16", "bool", False, "Compute in fp16."),
    *_keys("bool", average_tokens_across_devices=True, bf16_full_eval=False, fp16_full_eval=False, tf32=None, torch_compile=False,
           use_cache=False,
           auto_find_batch_size=False, full_determinism=False),
    *_keys("str", optim_args=None, torch_compile_backend=None, torch_compile_mode=None),
    *_keys("names", optim_target_modules=None),
    *_keys("mapping", lr_scheduler_kwargs=None, liger_kernel_config=None, accelerator_config=None),
    _key("torch_empty_cache_steps", "int", low=1),
    _key("train_sampling_strategy", "str", "random", "Order of the data.",
        choices=("random", "sequential", "group_by_length", "batch_rebalance")),
)

_LOGGING: Final = (
    _key("logging_strategy", "str", "steps", choices=_INTERVALS),
    _key("logging_steps", "float", 500, "Steps between two losses; below 1 a share of all steps.", above=0),
    *_keys("bool", logging_first_step=False, log_on_each_node=True, disable_tqdm=None),
    _key("include_num_input_tokens_seen", "str", "no", choices=("all", "non_padding", "no")),
    _key("log_level", "str", "passive", choices=_LEVELS),
    _key("log_level_replica", "str", "warning", choices=_LEVELS),
    _key("report_to", "names", ("none",), "Trackers: none, tensorboard, wandb …", choices=_TRACKERS),
    *_keys("str", run_name=None, project="huggingface", trackio_space_id=None, trackio_bucket_id=None),
    *_keys("any", trackio_static_space_id=None),
)

_EVALUATION: Final = (
    _key("eval_strategy", "str", "no", "When to evaluate.", choices=_INTERVALS),
    _key("eval_steps", "float", about="Steps between two evaluations; below 1 a share.", above=0),
    _key("eval_delay", "float", 0, low=0),
    *_keys("bool", prediction_loss_only=False, eval_on_start=False, eval_do_concat_batches=True, eval_use_gather_object=False,
           batch_eval_metrics=False,
           load_best_model_at_end=False, greater_is_better=None),
    _key("eval_accumulation_steps", "int", low=1),
    *_keys("names", include_for_metrics=()),
    *_keys("str", metric_for_best_model=None),
    _key("generation_max_length", "int", low=1),
    _key("generation_num_beams", "int", low=1),
    *_keys("bool", sortish_sampler=False),
)

_SAVING: Final = (
    _key("save_strategy", "str", "steps", "When to write a checkpoint.", choices=(*_INTERVALS, "best")),
    _key("save_steps", "float", 500, "Steps between two checkpoints; below 1 a share.", above=0),
    _key("save_total_limit", "int", about="Checkpoints to keep.", low=1),
    *_keys("bool", save_only_model=False, save_on_each_node=False, enable_jit_checkpoint=False, push_to_hub=False, hub_private_repo=None,
           hub_always_push=False, ignore_data_skip=False, restore_callback_states_from_checkpoint=False),
    *_keys("str", hub_model_id=None, hub_revision=None),
    _key("hub_strategy", "str", "every_save", choices=("end", "every_save", "checkpoint", "all_checkpoints")),
)

_LOADING: Final = (
    _key("dataloader_num_workers", "int", 0, "Processes that load batches.", low=0),
    _key("dataloader_prefetch_factor", "int", low=1),
    *_keys("bool", dataloader_drop_last=False, dataloader_pin_memory=True, dataloader_persistent_workers=False, dataloader_in_order=True),
    _key("dataloader_multiprocessing_context", "str", choices=("fork", "spawn", "forkserver")),
    *_keys("str", length_column_name="length"),
)

_PARALLEL: Final = (
    _key("ddp_timeout", "int", 1800, "Seconds that processes wait for each other.", low=1),
    _key("ddp_bucket_cap_mb", "int", low=1),
    _key("ddp_backend", "str", choices=("nccl", "mpi", "xccl", "gloo", "hccl")),
    *_keys("bool", ddp_find_unused_parameters=None, ddp_broadcast_buffers=None, ddp_static_graph=None, skip_memory_metrics=True),
    _key("fsdp", "any", about="FSDP: true, or options such as `full_shard auto_wrap`."),
    _key("fsdp_config", "mapping", about="FSDP's configuration, or the path of its JSON file."),
    _key("deepspeed", "mapping", about="DeepSpeed's configuration, or the path of its JSON file."),
    *_keys("str", debug=""),
)


def _translated(kind: Kind, default: object, note: str, names: str) -> tuple[Key, ...]:
    return tuple(Key(name=name, kind=kind, default=default, verdict="translated", note=note, about=f"Means {note}.", owner="transformers")
                 for name in names.split())


_TRANSLATED: Final = (
    *_translated("bool", None, "the opposite of disable_gradient_checkpointing", "gradient_checkpointing activation_checkpointing"),
    *_translated("mapping", None, "use_reentrant_gc", "gradient_checkpointing_kwargs activation_checkpointing_kwargs"),
    *_translated("bool", False, "enable_liger_kernel", "use_liger_kernel"),
    *_translated("bool", False, "fl.hw: cpu", "use_cpu"),
)

_IGNORED: Final = (
    *_other(_keys("bool", logging_nan_inf_filter=True), "the training stops at a loss that is no number"),
    *_other(_keys("bool", remove_unused_columns=True), "the trainer's own collators choose the columns"),
    *_other(_keys("names", label_names=None), "the labels are the trainer's own"),
    *_other(_keys("int", local_rank=-1), "fl starts the processes itself"),
    Key(name="hub_token", kind="str", verdict="ignored",
        note="a token in a recipe would be copied with it; set HF_TOKEN in the environment",
        about="Ignored: set HF_TOKEN.", secret=True, owner="transformers"),
    Key(name="parallelism_config", kind="any", verdict="refused",
        note="an object of accelerate, which no recipe can hold", owner="transformers",
        about="Not in recipes."),
    Key(name="generation_config", kind="any", verdict="refused", note="set temperature, top_p and the like instead", owner="transformers",
        about="Not in recipes: set temperature, top_p and the like."),
)

TRAINING_ARGUMENTS: Final = (*_LOOP, *_LOGGING, *_EVALUATION, *_SAVING, *_LOADING, *_PARALLEL, *_TRANSLATED, *_IGNORED)

RENAMED: Final[dict[str, str]] = {
    "evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu", "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size", "push_to_hub_model_id": "hub_model_id",
}
"""Keys of older versions under another name, with the same values."""

_GONE_TRANSLATED: Final[tuple[tuple[str, Kind, str], ...]] = (
    ("warmup_ratio", "float", "warmup_steps below 1, a share of all steps"),
    ("group_by_length", "bool", "train_sampling_strategy: group_by_length"),
    ("adafactor", "bool", "optim: adafactor"),
    ("include_inputs_for_metrics", "bool", "include_for_metrics: [inputs]"),
    ("fsdp_transformer_layer_cls_to_wrap", "str", "fsdp_config.transformer_layer_cls_to_wrap"),
    ("fsdp_min_num_params", "int", "fsdp_config.min_num_params"),
    ("logging_dir", "str", "environment TENSORBOARD_LOGGING_DIR"),
)
_NEWER = "transformers 5 has no such setting"


def _renamed(old: str, new: str) -> Key:
    known = next(key for key in TRAINING_ARGUMENTS if key.name == new)
    return replace(known, name=old, verdict="translated", note=new, about=f"Older name of {new}.", owner="gone")


GONE: Final = (
    *(_renamed(old, new) for old, new in RENAMED.items()),
    *(Key(name=name, kind=kind, verdict="translated", note=note,
        about=f"Means {note}.", owner="gone", low=0 if name == "warmup_ratio" else None,
          below=1 if name == "warmup_ratio" else None) for name, kind, note in _GONE_TRANSLATED),
    Key(name="save_safetensors", kind="bool", default=True, verdict="ignored", note="weights are always saved as safetensors", owner="gone",
        about="Ignored: always true."),
    Key(name="include_tokens_per_second", kind="bool", default=False, verdict="ignored",
        note="every step's tokens per second are in the events", owner="gone",
        about="Ignored: always recorded."),
    Key(name="push_to_hub_token", kind="str", verdict="ignored",
        note="a token in a recipe would be copied with it; set HF_TOKEN in the environment",
        about="Ignored: set HF_TOKEN.", secret=True, owner="gone"),
    *(Key(name=name, kind="any", verdict="ignored", note=_NEWER, about="Ignored: gone from transformers 5.", owner="gone")
      for name in words(
        "fp16_backend fp16_opt_level half_precision_backend jit_mode_eval mp_parameters past_index push_to_hub_organization ray_scope "
        "torchdynamo "
        "tpu_metrics_debug tpu_num_cores use_ipex use_legacy_prediction_loop use_mps_device")),
)
