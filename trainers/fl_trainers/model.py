"""Tokenizer and weights: from a folder, the hub, a GGUF file, or built in."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fl_trainers import quantization, ranks, sharding, tiny, weight_files
from fl_trainers.config import Config
from fl_trainers.data import templates
from fl_trainers.device import Device
from fl_trainers.errors import InputError
from fl_trainers.progress import Events, log

ATTENTION = {"auto": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}

VOCABULARIES = ("tokenizer.json", "*.model", "vocab*", "*.tiktoken", "merges*", "*.py")
"""Files of which a tokenizer has at least one."""


def folder_of(config: Config) -> str:
    """What `from_pretrained` opens. A GGUF file is converted on first use; a local folder is looked at, so that its faults have names."""
    model = config.model
    if model.kind == "gguf":
        return _converted(config)
    if model.kind == "folder":
        path = Path(model.path)
        if not path.is_dir():
            raise InputError(
                f"model {model.name}: {path} is no folder", "a folder with config.json, a hub name, a .gguf file or builtin/NAME"
            )
        if not (path / "config.json").is_file():
            found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            hint = "it is an adapter: give the base as model_name_or_path and it as adapter_name_or_path"
            raise InputError(
                f"model {model.name}: no config.json in {path} (it holds: {found})", hint if "adapter_config.json" in found else ""
            )
        broken = None if model.train_from_scratch else weight_files.fault_of_folder(path)
        if broken:
            raise InputError(f"model {model.name}: {path / broken[0]}: {broken[1]}", "download or copy the model again")
    return model.path


def load_tokenizer(config: Config, source: str, texts: Iterable[str], events: Events) -> Any:
    """The tokenizer with the chat template that this run trains; `texts` are read by the built-in tiny models only."""
    model = config.model
    chat = templates.chosen(config.data.template, config.data.tool_format, config.data.default_system)
    if model.kind == "tiny":
        tokenizer = tiny.tokenizer(texts, templates.jinja(chat or templates.find("chatml")))
    else:
        from transformers import AutoTokenizer

        if model.kind == "folder" and not any(next(Path(source).glob(pattern), None) for pattern in VOCABULARIES):
            raise _no_tokenizer(config)
        tokenizer = _explained(config, lambda: AutoTokenizer.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code, use_fast=model.use_fast_tokenizer,
            split_special_tokens=model.split_special_tokens, padding_side="right",
        ))  # fmt: skip
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder) and model.kind != "tiny":  # transformers makes an empty one of no files
        raise _no_tokenizer(config)
    added = tokenizer.add_tokens(list(model.add_tokens)) if model.add_tokens else 0
    if model.add_special_tokens:
        added += tokenizer.add_special_tokens({"additional_special_tokens": list(model.add_special_tokens)})
    if added and not model.resize_vocab:
        events.warn("vocabulary", f"{added} tokens were added; the embedding grows only if it has no room for them", added=added)
    if chat is not None:
        _use_format(tokenizer, chat, events)
    elif not tokenizer.chat_template and config.method.stage != "pt":
        tokenizer.chat_template = templates.jinja(templates.find(templates.DEFAULT))
        events.warn("template", f"the tokenizer has no chat template and the recipe names none: `template: {templates.DEFAULT}` is used")
    if tokenizer.eos_token_id is None:
        raise InputError(f"model {model.name}: its tokenizer has no end token", "name a `template:` whose end token it knows")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _no_tokenizer(config: Config) -> InputError:
    return InputError(f"model {config.model.name} has no tokenizer (tokenizer.json, tokenizer.model or a vocabulary)",
                      "copy the tokenizer's files from the model it was made of")  # fmt: skip


def _use_format(tokenizer: Any, chat: templates.Format, events: Events) -> None:
    """The recipe's template wins over the tokenizer's own; its end token ends answers if the tokenizer knows it."""
    tokenizer.chat_template = templates.jinja(chat)
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in chat.end[:1] if token not in vocabulary]
    if unknown:
        events.warn(
            "template",
            f"template {chat.name} ends answers with {unknown[0]}, which this tokenizer has not as one token",
            template=chat.name,
        )
    elif chat.eos:
        tokenizer.eos_token = chat.end[0]


def load_model(config: Config, source: str, tokenizer: Any, device: Device) -> tuple[Any, str]:
    """The weights in the dtype that device.py chose, not yet frozen or wrapped, and the digest of their config as it was found."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sharding.meet(config)
    model = config.model
    if model.kind == "tiny":
        made = tiny.model(model.path, len(tokenizer), int(config.training.arguments.get("seed", 42)))
        _balance(config, made.config)
        if config.model.moe_aux_loss_coef is not None:
            made.router_aux_loss_coef = config.model.moe_aux_loss_coef
        made = quantization.built_in(config, device, made.to(dtype=device.dtype))
    else:
        common: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        settings = _explained(config, lambda: AutoConfig.from_pretrained(source, **common))
        settings = getattr(settings, "text_config", None) or settings if not _generates(settings) else settings
        _scale_rope(config, settings)
        _balance(config, settings)
        options: dict[str, Any] = {**common, "config": settings, "dtype": device.dtype, "attn_implementation": ATTENTION[model.attention]}
        options |= quantization.options(config, device, settings)
        if model.train_from_scratch:
            made = AutoModelForCausalLM.from_config(settings, dtype=device.dtype, trust_remote_code=model.trust_remote_code)
        else:
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # what is wrong is told below, with its name
            made, told = _explained(config, lambda: AutoModelForCausalLM.from_pretrained(source, **options))
            _refuse_gaps(config, told)
    digest = config_digest(made)
    _grow(config, made, tokenizer)
    made.config.use_cache = False
    _align_tokens(made, tokenizer)
    return made, digest


def _refuse_gaps(config: Config, told: dict[str, Any]) -> None:
    """Weights that the files lack, or hold in another shape, would stay random."""
    name, remedy = config.model.name, "download or copy the model again; its config.json and its weights must be of one model"
    for weight, there, here in sorted(told.get("mismatched_keys") or ()):
        raise InputError(f"model {name}: {weight} has the shape {list(there)} in the files, {list(here)} by config.json", remedy)
    head = ("lm_head.",) if config.method.stage == "rm" else ()  # a reward model does without
    missing = sorted(weight for weight in told.get("missing_keys") or () if not weight.startswith(head or ("\0",)))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"model {name}: its files lack {missing[0]}{more}", remedy)


def _grow(config: Config, model: Any, tokenizer: Any) -> None:
    """Rows for tokens that the recipe adds, or that the tokenizer has as added ones. A vocabulary that is another one is refused."""
    room, wanted = model.get_input_embeddings().num_embeddings, len(tokenizer)
    if wanted <= room:
        return
    ordinary = sorted(set(range(room, wanted)) - set(tokenizer.added_tokens_decoder))
    if ordinary and not config.model.resize_vocab:
        token = tokenizer.convert_ids_to_tokens(ordinary[0])
        raise InputError(
            f"model {config.model.name}: its embedding has {room} rows and its tokenizer {wanted} tokens; "
            f"id {ordinary[0]} ({token!r}) has none",
            "the tokenizer that belongs to the model, or `resize_vocab: true`, which adds rows that begin random",
        )
    model.resize_token_embeddings(wanted, pad_to_multiple_of=64)
    log.warning("warning: the embedding grew from %d rows to %d: new rows begin random", room, model.get_input_embeddings().num_embeddings)


def _align_tokens(model: Any, tokenizer: Any) -> None:
    """Model and tokenizer agree on the special tokens; what ended an answer before still does."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    known = [ends] if isinstance(ends, int) else list(ends or [])
    for settings in (model.config, model.generation_config):
        if settings is not None:
            settings.bos_token_id, settings.pad_token_id, settings.eos_token_id = (
                tokenizer.bos_token_id,
                tokenizer.pad_token_id,
                tokenizer.eos_token_id,
            )
    if model.generation_config is not None and set(known) - {tokenizer.eos_token_id}:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *(end for end in known if end != tokenizer.eos_token_id)]


def checkpoint_activations(config: Config, model: Any) -> None:
    """Gradient checkpointing as LLaMA-Factory has it: on unless the recipe says otherwise."""
    if not config.model.gradient_checkpointing:
        return
    reentrant = config.model.use_reentrant_gc and config.method.badam is None  # BAdam's layers come and go, and need no gradient below
    kwargs = {"use_reentrant": reentrant}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    if reentrant:
        model.enable_input_require_grads()


def _generates(settings: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return settings.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or hasattr(settings, "auto_map")


def _scale_rope(config: Config, settings: Any) -> None:
    """Stretches the positions so that cutoff_len fits; a model that is long enough stays as it is."""
    kind, longest = config.model.rope_scaling, getattr(settings, "max_position_embeddings", None)
    if kind is None or longest is None or config.data.cutoff_len <= longest:
        return
    factor = float(-(-config.data.cutoff_len // longest))
    parameters = dict(getattr(settings, "rope_parameters", None) or {})
    parameters |= {"rope_type": kind, "factor": factor}
    if kind in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = longest
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings.rope_parameters = parameters
    settings.max_position_embeddings = int(longest * factor)
    log.info("rope scaling %s by %g: %d positions", kind, factor, settings.max_position_embeddings)


def _balance(config: Config, settings: Any) -> None:
    """The loss that keeps experts evenly used: the model adds it to its own, with this weight. 0 leaves it out."""
    weight = config.model.moe_aux_loss_coef
    if weight is None:
        return
    if not hasattr(settings, "router_aux_loss_coef"):
        raise InputError(
            f"moe_aux_loss_coef: {config.model.name} has no experts with such a loss", "leave it out: it is for Mixtral and its kin"
        )
    settings.router_aux_loss_coef, settings.output_router_logits = weight, weight > 0


def _explained(config: Config, load: Any) -> Any:
    """transformers and the hub raise OSError, ValueError and classes of their own; the user needs the name and the first line."""
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        if "out of memory" in str(error) or ranks.lost(error):
            raise
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        first = next((line for line in lines if line.startswith("size mismatch")), lines[0])
        raise InputError(f"model {config.model.name} cannot be loaded: {first}", _hint(str(error))) from error


def _hint(text: str) -> str:
    if "trust_remote_code" in text:
        return "the model brings its own code: `trust_remote_code: true` runs it"
    if "not the path to a directory" in text or "offline" in text.lower() or "couldn't connect" in text.lower() or "resolve" in text:
        return "check the name; without a network the model must be a folder or already in the hub's cache"
    if "flash" in text.lower():
        return "`flash_attn: sdpa` needs no package"
    return ""


def _converted(config: Config) -> str:
    """The folder with a GGUF file's weights as safetensors: made once, complete or absent, by one process for all."""
    source = Path(config.model.path)
    if not source.is_file():
        raise InputError(f"model {config.model.name}: {source} does not exist")
    target = Path(config.model.converted or Path(config.run.events).parent / "converted-model")
    if not (target / "config.json").is_file():
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            _convert(config, source, target)
        else:
            _wait_for(target / "config.json")
    return str(target)


def _wait_for(path: Path) -> None:
    import time

    while not path.is_file():
        time.sleep(0.2)  # rank 0 ends the whole run when it fails


def _convert(config: Config, source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s (once)", source.name)
    tokenizer = _explained(config, lambda: AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name))
    model = _explained(config, lambda: AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32))
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain now, but saving is refused while anything says otherwise
    model.hf_quantizer = None
    if model.num_parameters() > 1_000_000_000:
        model = model.to(torch.bfloat16)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if target.exists() and not (target / "config.json").is_file():
            shutil.rmtree(target)
        temporary.rename(target)
    except OSError as error:
        if not (target / "config.json").is_file():  # else another run was faster, and its folder is as good
            raise InputError(
                f"{source.name} cannot be converted into {target}: {error.strerror}", "free disk space, or another XDG_CACHE_HOME"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def config_digest(model: Any) -> str:
    """SHA-256 of the model's config as canonical JSON, without what says where it was loaded from or by what."""
    settings = {
        key: value for key, value in model.config.to_dict().items() if key not in ("_name_or_path", "transformers_version", "use_cache")
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
