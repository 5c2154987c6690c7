"""LLaMA-Factory's keys that this version does not act on: ignored with the reason, or refused where they ask for what it cannot do.

A refused key that asks for nothing (`use_galore: false`) is ignored, since generated recipes carry dozens of those.
"""

from __future__ import annotations

from typing import Final

from fl.recipe_keys import Key, Kind, Verdict


def _ignored(reason: str, kind: Kind, names: str, secret: bool = False) -> tuple[Key, ...]:
    return tuple(Key(name=name, kind=kind, verdict="ignored", note=reason,
        about=f"Ignored: {reason}.", secret=secret) for name in names.split())


def _refused(reason: str, kind: Kind, **defaults: object) -> tuple[Key, ...]:
    return tuple(Key(name=name, kind=kind, default=default, verdict="refused", note=reason, about=f"Not in this version: {reason}.")
                 for name, default in defaults.items())


def _family(switch: str, title: str, children: str) -> tuple[Key, ...]:
    """A switch that this version refuses, and the keys that mean something only beside it."""
    verdict: Verdict = "ignored"
    rest = tuple(Key(name=name, kind="any", verdict=verdict, note=f"belongs to {title}, which this version does not have",
        about=f"Of {title}.")
                 for name in children.split())
    return (Key(name=switch, kind="bool", default=False, verdict="refused", note=f"this version does not have {title}",
        about=f"{title}."), *rest)


_SECRET = "a token in a recipe would be copied with it; set HF_TOKEN in the environment"
_MEDIA = "pictures, videos and sounds are not trained in this version"
_SERVE = "of inference, which a training does not touch"
_EXPORT = "of the export of models, which a training does not touch"
_RAY = "fl starts the processes itself"
_EVAL = "belongs to LLaMA-Factory's benchmark command, not to training"
_MEGATRON = "belongs to Megatron-Bridge, which this version does not have"
_KT = "belongs to KTransformers, which this version does not have"

_OPTIMIZERS: Final = (
    *_family("fp8", "FP8 training", "fp8_backend fp8_enable_fsdp_float8_all_gather"),
)

_BACKENDS: Final = (
    *_family("use_kt", "KTransformers", "kt_cpu_activation kt_expert_checkpoint_path kt_lora_expert_intermediate_size kt_lora_expert_num "
             "kt_non_expert_weight_path kt_use_lora_experts kt_weight_path"),
    *_refused(_KT, "any", kt_config=None),
    *_family("use_mca", "Megatron-Core", ""),
    *_family("use_megatron_bridge", "Megatron-Bridge", "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split "
        "apply_rope_fusion "
             "bias_activation_fusion calculate_per_token_loss cross_entropy_loss_fusion export_hf_on_finish extra_config "
             "masked_softmax_fusion "
             "mixed_precision moe_grouped_gemm moe_token_dispatcher_type overlap_grad_reduce overlap_param_gather recompute_granularity "
             "recompute_method recompute_num_layers use_distributed_optimizer use_packed_sequences"),
    *_refused(_MEGATRON, "int", tensor_model_parallel_size=1, pipeline_model_parallel_size=1, expert_model_parallel_size=1,
              context_parallel_size=1,
              virtual_pipeline_model_parallel_size=None),
    *_refused(_MEGATRON, "any", sequence_parallel=False, megatron_pretrained_checkpoint=None),
    *_family("use_hyper_parallel", "HyperParallel", "hyper_parallel_args hyper_parallel_cp_size"),
    *_family("use_unsloth", "Unsloth", ""),
    *_ignored(_RAY, "any", "ray_num_workers ray_init_kwargs master_addr master_port"),
    *_family("use_swanlab", "SwanLab", "swanlab_lark_webhook_url swanlab_logdir swanlab_mode swanlab_project swanlab_run_name "
        "swanlab_workspace"),
    *_ignored("belongs to SwanLab, which this version does not have", "any", "swanlab_api_key swanlab_lark_secret", secret=True),
    *_family("enable_torch_profiler", "torch's profiler", "profiler_active_steps profiler_output_dir profiler_profile_memory "
        "profiler_record_shapes "
             "profiler_repeat profiler_wait_steps profiler_warmup_steps profiler_with_stack"),
    *_refused("this version does not have the module profiler", "any", profile_modules=None),
)

_MODEL: Final = (
    *_refused("LongLoRA's shifted attention needs transformers below 4.48", "bool", shift_attn=False),
    *_refused("mixture of depths replaces the model's layers by those of the package mixture-of-depth, which no stack has, and what it "
              "saves loads nowhere without that package", "any", mixture_of_depths=None),
    *_refused("this version initializes new tokens with noise only",
              "any", new_special_tokens_config=None, init_special_tokens="noise_init"),
    *_refused("this version places a quantized model on one device a process", "any", quantization_device_map=None),
    *_ignored("transformers 5 has one kind of tokenizer", "bool", "use_fast_tokenizer"),
    *_ignored("weights are always loaded without a second copy", "bool", "low_cpu_mem_usage"),
    *_ignored("kernels of LLaMA-Factory's own second version", "any", "use_v1_kernels"),
    *_ignored("the log names what is trained", "bool", "print_param_status"),
    *_ignored("train_results.json always has effective_tokens_per_sec, padding not counted, and the events that of every step",
              "bool", "include_effective_tokens_per_second"),
    *_ignored("one node prepares the data for all of its processes", "bool", "data_shared_file_system"),
    *_ignored(_SECRET, "str", "hf_hub_token ms_hub_token om_hub_token", secret=True),
    *_ignored(_MEDIA, "any", "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels "
        "video_fps "
              "video_maxlen use_audio_in_video audio_sampling_rate media_dir freeze_vision_tower freeze_multi_modal_projector"),
    *_refused(_MEDIA, "bool", freeze_language_model=False),
)

_LATER: Final = (
    *_ignored("rows are tokenized anew each time, except those of tokenized_path", "bool", "overwrite_cache"),
)

_OTHER: Final = (
    *_ignored(_SERVE, "any", "infer_backend infer_dtype use_kv_cache offload_folder vllm_maxlen vllm_gpu_util vllm_enforce_eager "
        "vllm_max_lora_rank "
              "vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend"),
    *_ignored("max_new_tokens limits answers", "int", "max_length"),
    *_ignored(_EXPORT, "any", "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples "
              "export_quantization_maxlen export_legacy_format export_hub_model_id"),
    *_refused(_EVAL, "any", task=None, task_dir=None, lang=None, n_shot=None, save_dir=None, download_mode=None),
    *_refused(_EVAL + "; the batch size of training is per_device_train_batch_size", "any", batch_size=None),
)

UNSUPPORTED: Final = (*_OPTIMIZERS, *_BACKENDS, *_MODEL, *_LATER, *_OTHER)
