"""Which checkpoint a run goes on from. One that was cut off while being written is found out and passed over."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from fl_trainers import output, weight_files
from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.progress import Events, log, rank, world_size

NAME = re.compile(r"checkpoint-(\d+)")
ZERO_PART = re.compile(r"zero_pp_rank_(\d+)_")
WEIGHTS = (
    "adapter_model.safetensors", "adapter_model.bin", "model*.safetensors", "pytorch_model*.bin", "pytorch_model_fsdp*", "global_step*",
)  # fmt: skip
"""Of which a checkpoint has at least one."""
LEFT = (
    "trainer_log.jsonl", "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "predict_results.json",
    "generated_predictions.jsonl", "comparison.json", "value_head.safetensors", "value_head.bin", "ppo_state.json", "preference_state.json",
)  # fmt: skip
"""What a run leaves beside its weights."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Beside a whole model they would be loaded on top of it."""
WHOLE = ("config.json", "generation_config.json", *output.MODELS)
"""Beside an adapter they would be taken for its base."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of an output folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if path.is_dir() and (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None. The state is written last; every file's own form tells whether it is whole."""
    state = checkpoint / "trainer_state.json"
    if not state.is_file():
        return "trainer_state.json is missing"
    told = _object(state)
    if told is None or not isinstance(told.get("global_step"), int):
        return "trainer_state.json is broken"
    adapter = checkpoint / "adapter_config.json"
    if adapter.is_file() and _object(adapter) is None:
        return "adapter_config.json is broken"
    if not any(next(checkpoint.glob(pattern), None) for pattern in WEIGHTS):
        return "it holds no weights"
    shard = weight_files.fault_of_folder(checkpoint)
    if shard:
        return f"{shard[0]} is missing" if "missing" in shard[1] else f"{shard[0]} is cut off"
    for path in checkpoint.glob("*.safetensors"):
        if weight_files.fault(path):
            return f"{path.name} is cut off"
    for path in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth"), *checkpoint.glob("global_step*/*.pt")):
        if not zipfile.is_zipfile(path):
            return f"{path.relative_to(checkpoint)} is cut off"
    return None


def _object(path: Path) -> dict[str, Any] | None:
    """The mapping that a file of JSON holds, None for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    return found if isinstance(found, dict) else None


def goes_on(checkpoint: Path, *, deepspeed: bool) -> bool:
    """Whether optimizer and schedule are in it, in a form that is read: `save_only_model` leaves them out, DeepSpeed has its own."""
    if deepspeed:
        return any(checkpoint.glob("global_step*"))
    return any(checkpoint.glob("optimizer*")) and (checkpoint / "scheduler.pt").is_file()


def parts(checkpoint: Path) -> int | None:
    """Among how many processes ZeRO has spread the optimizer's state, None where it has not."""
    found = [int(match[1]) for path in checkpoint.glob("global_step*/*optim_states.pt") if (match := ZERO_PART.search(path.name))]
    return max(found) + 1 if found else None


def must_fit(checkpoint: Path, kind: str, model: Any) -> None:
    """Raises InputError where a checkpoint is of another kind of training, or of a model or adapter of another shape."""
    why = _misfit(checkpoint, kind, model)
    if why:
        raise InputError(f"{checkpoint} does not go on with this recipe: {why}",
                         "another output_dir, the recipe as it was, or `overwrite_output_dir: true`, which starts anew")  # fmt: skip


def _misfit(checkpoint: Path, kind: str, model: Any) -> str | None:
    settings, beside = checkpoint / "adapter_config.json", kind in ("lora", "oft")
    found = str(json.loads(settings.read_text(encoding="utf-8")).get("peft_type", "")).lower() if settings.is_file() else "whole"
    if found != (kind if beside else "whole"):
        return f"it holds {'all weights' if found == 'whole' else f'an adapter of type {found}'}, and finetuning_type is {kind}"
    weights = [*checkpoint.glob("adapter_model.safetensors" if beside else "model*.safetensors")]
    there = {name: entry["shape"] for path in weights for name, entry in weight_files.tensors(path).items()}
    if beside:
        from peft import get_peft_model_state_dict

        here = get_peft_model_state_dict(model)
    else:
        here = model.state_dict()
    common = [name for name in there if name in here]
    other = next((name for name in common if list(here[name].shape) != there[name]), None)
    if other:
        return f"{other} has the shape {there[other]} there and {list(here[other].shape)} here"
    only = sorted(set(there) ^ set(here)) if beside and there else []
    if only:
        return f"{len(only)} weights stand on one side only, {only[0]} among them"
    return _other_scale(json.loads(settings.read_text(encoding="utf-8")), model) if beside else None


def _other_scale(there: dict[str, Any], model: Any) -> str | None:
    """peft keeps the scale of the adapter that it was made with: the weights of another one would count for more or for less."""
    here = next(iter(model.peft_config.values()))
    apart = [name for name in ("lora_alpha", "use_rslora") if there.get(name) != getattr(here, name, None)]
    return f"its adapter has {apart[0]} {there.get(apart[0])}, this one {getattr(here, apart[0])}" if apart else None


def prepare_output(config: Config) -> Path:
    """Makes the output folder and proves that it can be written. What is in it stays: data and model may yet turn out to be of no use."""
    folder = Path(config.training.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".fl-write-{rank()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be written: {error.strerror}", "`output_dir:` another folder") from error
    return folder


def clear(config: Config) -> None:
    """With overwrite_output_dir what an earlier run left goes, now that this one begins to train."""
    training = config.training
    if not (training.overwrite_output_dir and training.do_train) or training.resume_from_checkpoint or rank():
        return
    folder = Path(training.output_dir)
    try:
        for path in checkpoints(folder):
            shutil.rmtree(path)
        whole = config.method.finetuning_type in ("full", "freeze")
        given = {Path(name).resolve() for name in (config.model.path, *config.model.adapters)}
        other = ADAPTER if whole else (*WHOLE, *(path.name for path in folder.glob("model-*.safetensors")))
        for name in (*LEFT, *(() if folder.resolve() in given else other)):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"output_dir {folder}: {error.filename} cannot be removed: {error.strerror}", "another output_dir") from error


def drop_unfinished(config: Config, before: set[str]) -> None:
    """After a write that failed: what this run has of a checkpoint that is not whole is of no use and takes the space of the next try."""
    for path in () if rank() else checkpoints(Path(config.training.output_dir)):
        if path.name not in before and fault(path) is not None:
            shutil.rmtree(path, ignore_errors=True)
            log.warning("warning: %s was not whole and is removed", path.name)


def resume_from(config: Config, events: Events) -> str | None:
    """The checkpoint to go on from, or None to start at the beginning."""
    wanted = config.training.resume_from_checkpoint
    folder = Path(config.training.output_dir)
    if wanted is False or (wanted is None and config.training.overwrite_output_dir):
        return None
    if isinstance(wanted, str):
        path = Path(wanted)
        why = fault(path) if path.is_dir() else "there is no such folder"
        if why:
            near = ", ".join(entry.name for entry in checkpoints(path.parent)) or "none"
            raise InputError(f"resume_from_checkpoint: {path}: {why}", f"checkpoints there: {near}")
        return _taken(path, config, events)
    for path in checkpoints(folder):
        why = fault(path)
        if why is None:
            log.info("resuming from %s", path)
            return _taken(path, config, events)
        events.warn("checkpoint", f"{path.name} is incomplete ({why}); trying the one before", checkpoint=path.name)
    if wanted is True:
        raise InputError(f"resume_from_checkpoint: true, but {folder} holds no usable checkpoint", "leave it out to start at the beginning")
    return None


def _taken(path: Path, config: Config, events: Events) -> str:
    """Of weights alone a run goes on as well as it can, and says so; InputError where it cannot."""
    deepspeed = bool(config.training.arguments.get("deepspeed"))
    if not config.training.do_train:
        return str(path)
    key = "adapter_name_or_path" if config.method.finetuning_type in ("lora", "oft") else "model_name_or_path"
    anew = f"`{key}: {path}` and another output_dir begin with these weights; `overwrite_output_dir: true` starts anew"
    known = parts(path) if deepspeed else None
    if known not in (None, world_size()):
        raise InputError(f"{path} was written by {known} processes, and ZeRO cannot go on from it with {world_size()}",
                         f"as many devices as then (`--devices count:{known}`)\n{anew}")  # fmt: skip
    if goes_on(path, deepspeed=deepspeed):
        return str(path)
    why = "holds weights only (`save_only_model: true`)" if not goes_on(path, deepspeed=not deepspeed) else (
        "was written without DeepSpeed" if deepspeed else "has its optimizer in DeepSpeed's form")  # fmt: skip
    if deepspeed:
        raise InputError(f"{path} {why}, so DeepSpeed cannot go on from it", anew)
    events.warn("checkpoint", f"{path.name} {why}: the learning rate goes on where it was, and the optimizer's moments begin anew, so "
                "expect other losses for some steps", checkpoint=path.name)  # fmt: skip
    return str(path)
