"""A recipe and its files → the config. Here files are opened: the recipe, dataset_info.json, JSON that keys name, the model's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl import modelscope, paths, recipe_grpo, recipe_preference, resolve_reward
from fl.errors import RecipeError
from fl.hardware import LaneName
from fl.recipe import Recipe, parse
from fl.recipe_arguments import arguments, gradient_checkpointing, reentrant
from fl.recipe_keys import nearest
from fl.recipe_yaml import MAX_BYTES
from fl.resolve_method import method_fields
from fl.resolve_model import absolute, check_adapters, check_model, locate, locate_adapters

if TYPE_CHECKING:
    from fl_trainers.config import Config, Data, Dataset, Generation, Method, Model, Training

SUFFIXES: Final = (".yaml", ".yml", ".json")
_JSON_FILES: Final = ("deepspeed", "fsdp_config", "accelerator_config", "lr_scheduler_kwargs", "liger_kernel_config")


def read(source: str, overrides: Sequence[str] = (), *, cwd: Path | None = None, tolerant: bool = False) -> Recipe:
    """Reads a recipe by path or by the name of a shipped one. `tolerant`: refused keys are left for the caller to show."""
    with _opening():
        path, shipped = find(source, cwd or Path.cwd())
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    recipe = parse(raw, file=path.name if shipped else source, path=str(path), overrides=overrides, shipped=shipped)
    return recipe if tolerant else recipe.require()


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with fl, by name."""
    return {path.stem: path for path in sorted(paths.recipes().rglob("*")) if path.suffix in (".yaml", ".yml")}


def title(path: Path) -> str:
    """The first line of a recipe, which says what it is."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(500).strip().lstrip("# ").rstrip(".")


def find(source: str, cwd: Path) -> tuple[Path, bool]:
    """(path, shipped) of a recipe. A file wins over a shipped name only when written with a suffix or a slash."""
    shipped = shipped_recipes()
    if source in shipped:
        return shipped[source], True
    path = absolute(source, cwd)
    if path.is_file() or (path.exists() and not path.is_dir()):
        return path, path.is_relative_to(paths.recipes())
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; a recipe is a file.", f"ls {path}")
    near = nearest(source, list(shipped)) if "/" not in source else None
    siblings = [child.name for child in path.parent.iterdir() if child.suffix in SUFFIXES] if path.parent.is_dir() else []
    close = nearest(path.name, siblings)
    hint = f" Did you mean {near or close!r}?" if near or close else ""
    raise RecipeError(f"There is no recipe file {path}, and no shipped recipe {source!r}.{hint}", "fl recipe list")


def resolve(
    recipe: Recipe,
    *,
    run_name: str,
    lane: LaneName,
    stack: str,
    events: str,
    cache: str | None,
    cwd: Path,
    output_dir: str | None = None,
    builtin_gguf: str | None = None,
    converted: str | None = None,
    threads: int | None = None,
) -> Config:
    """The whole config. Relative paths start from `cwd`, those of a shipped recipe's data from the recipe, unless they were typed as
    overrides. `output_dir` wins over its own."""
    from fl.resolve_data import check_files, datasets
    from fl_trainers.config import Config, Run

    typed = {text.partition("=")[0].strip() for text in recipe.overrides}

    def base(key: str) -> Path:
        return Path(recipe.path).parent if recipe.shipped and key not in typed else cwd

    folder = recipe.get("dataset_dir")
    folder = folder if folder == "ONLINE" else str(absolute(folder, base("dataset_dir")))
    with _opening():
        train = datasets(recipe.get("dataset") or (), folder, base("dataset"))
        evaluation = datasets(recipe.get("eval_dataset") or (), folder, base("eval_dataset"))
        check_files((*train, *evaluation))
        recipe_preference.check_datasets(recipe_preference.stage(recipe.get), (*train, *evaluation))
        model = _model(recipe, cwd, builtin_gguf, converted)
        if not model.name.startswith("builtin/"):  # those are fetched or made later
            check_model(model.path, model.kind, from_scratch=model.train_from_scratch)
        check_adapters(model.adapters)
    config = Config(
        run=Run(name=run_name, lane=lane, stack=stack, events=events, cache=cache, prompts=recipe.launcher.prompts, threads=threads),
        model=model,
        data=_data(recipe, train, evaluation, cwd),
        method=_method(recipe, cwd),
        training=_training(recipe, _json_files(recipe, base), cwd, output_dir),
        generation=_generation(recipe),
    )
    with _opening():
        resolve_reward.check(config)
    return modelscope.place(config)


def draft(recipe: Recipe, *, lane: LaneName, stack: str) -> Config:
    """The config without its data sets, for questions that need no files but the recipe. Paths in it are not looked at."""
    from fl_trainers.config import Config, Run

    root = Path("/")
    return Config(
        run=Run(name=recipe.name, lane=lane, stack=stack, events="/dev/null"),
        model=_model(recipe, root, None, None),
        data=_data(recipe, (), (), root),
        method=_method(recipe, root),
        training=_training(recipe, {}, root, None),
        generation=_generation(recipe),
    )


@contextmanager
def _opening() -> Iterator[None]:
    """What the system says of a file becomes an error that names it."""
    try:
        yield
    except OSError as error:
        raise RecipeError(f"{error.filename} cannot be read: {error.strerror}.", f"ls -ld {error.filename}") from None


def environment(recipe: Recipe, cwd: Path) -> dict[str, str]:
    """Environment of the training that the recipe asks for: `fl.env`, and keys that became variables."""
    result: dict[str, str] = {}
    for key, variable in (("logging_dir", "TENSORBOARD_LOGGING_DIR"), ("cache_dir", "HF_HUB_CACHE")):
        if recipe.get(key):
            result[variable] = str(absolute(recipe.get(key), cwd))
    return {**result, **recipe.launcher.env}


_TRAINED: Final = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "model.safetensors.index.json")


def check_output(folder: str, training: Training | None = None) -> None:
    """Refuses an output folder that cannot be written, and a model in it that the training would overwrite. Nothing is created."""
    path = Path(folder)
    if training and training.do_train and not training.overwrite_output_dir and training.resume_from_checkpoint is None:
        found = next((name for name in _TRAINED if (path / name).is_file()), None)
        if found and not any(path.glob("checkpoint-*")):
            raise RecipeError(f"The output folder {path} holds a trained model already ({found}), and no checkpoint to go on from.",
                              "output_dir: another folder, or overwrite_output_dir: true, which replaces it")  # fmt: skip
    if path.exists() and not path.is_dir():
        raise RecipeError(f"The output folder {path} is a file.", "output_dir: a folder")
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(
            f"The output folder {path} cannot be written: {existing} is not writable for you.", "output_dir: a folder of yours"
        )


def _model(recipe: Recipe, cwd: Path, builtin_gguf: str | None, converted: str | None) -> Model:
    from fl_trainers.config import Model, Quantization

    get = recipe.get
    name = get("model_name_or_path") or ""
    path, kind = locate(name, cwd)
    quantization = None
    if get("quantization_bit"):
        quantization = Quantization(bits=get("quantization_bit"), type=get("quantization_type"), double=get("double_quantization"))
    return Model(
        name=name,
        path=builtin_gguf if builtin_gguf and kind == "gguf" and name.startswith("builtin/") else path,
        kind=kind,
        converted=converted if kind == "gguf" else None,
        revision=get("model_revision"),
        adapters=locate_adapters(get("adapter_name_or_path") or (), get("adapter_folder"), cwd),
        trust_remote_code=get("trust_remote_code"),
        attention=get("flash_attn"),
        quantization=quantization,
        train_from_scratch=get("train_from_scratch"),
        gradient_checkpointing=gradient_checkpointing(recipe),
        use_reentrant_gc=reentrant(recipe),
        upcast_layernorm=get("upcast_layernorm"),
        upcast_lmhead_output=get("upcast_lmhead_output"),
        liger=get("enable_liger_kernel") or get("use_liger_kernel"),
        rope_scaling=get("rope_scaling"),
        moe_aux_loss_coef=get("moe_aux_loss_coef"),
        split_special_tokens=get("split_special_tokens"),
        resize_vocab=get("resize_vocab"),
        add_tokens=get("add_tokens") or (),
        add_special_tokens=get("add_special_tokens") or (),
    )


def _data(recipe: Recipe, train: tuple[Dataset, ...], evaluation: tuple[Dataset, ...], cwd: Path) -> Data:
    from fl_trainers.config import Data

    get = recipe.get
    packing = get("stage") == "pt" if get("packing") is None else get("packing")
    return Data(
        train=train,
        eval=evaluation,
        template=get("template"),
        tool_format=get("tool_format"),
        default_system=get("default_system"),
        enable_thinking=get("enable_thinking"),
        preserve_thinking=get("preserve_thinking"),
        cutoff_len=get("cutoff_len"),
        ignore_pad_token_for_loss=get("ignore_pad_token_for_loss"),
        train_on_prompt=get("train_on_prompt"),
        mask_history=get("mask_history"),
        packing=packing or get("neat_packing"),
        neat_packing=get("neat_packing"),
        max_samples=get("max_samples"),
        val_size=get("val_size"),
        max_dropped=recipe.launcher.max_dropped,
        eval_on_each_dataset=get("eval_on_each_dataset"),
        mix_strategy=get("mix_strategy"),
        interleave_probs=get("interleave_probs") or (),
        streaming=get("streaming"),
        buffer_size=get("buffer_size"),
        preprocessing_batch_size=get("preprocessing_batch_size"),
        preprocessing_num_workers=get("preprocessing_num_workers"),
        tokenized_path=str(absolute(get("tokenized_path"), cwd)) if get("tokenized_path") else None,
        shuffle=not get("disable_shuffling"),
    )


def _method(recipe: Recipe, cwd: Path) -> Method:
    from fl_trainers.config import Freeze, Lora, Method, Oft

    get = recipe.get
    return Method(
        stage=recipe_preference.stage(get),
        finetuning_type=get("finetuning_type"),
        lora=Lora(
            rank=get("lora_rank"),
            alpha=get("lora_alpha"),
            dropout=get("lora_dropout"),
            target=get("lora_target"),
            additional_target=get("additional_target") or (),
            rslora=get("use_rslora"),
            dora=get("use_dora"),
            pissa_init=get("pissa_init"),
            pissa_iter=get("pissa_iter"),
            pissa_convert=get("pissa_convert"),
            loraplus_lr_ratio=get("loraplus_lr_ratio"),
            loraplus_lr_embedding=get("loraplus_lr_embedding"),
            create_new_adapter=get("create_new_adapter"),
        ),
        oft=Oft(rank=get("oft_rank"), block_size=get("oft_block_size"), target=get("oft_target"), module_dropout=get("module_dropout")),
        grpo=recipe_grpo.fields(get, cwd),
        preference=recipe_preference.fields(get),
        reference=resolve_reward.reference(get, cwd),
        ppo=resolve_reward.ppo(get, cwd),
        freeze=Freeze(
            trainable_layers=get("freeze_trainable_layers"),
            trainable_modules=get("freeze_trainable_modules"),
            extra_modules=get("freeze_extra_modules") or (),
        ),
        **method_fields(get),
        pure_bf16=get("pure_bf16"),
        use_dft_loss=get("use_dft_loss"),
        use_asft_loss=get("use_asft_loss"),
        asft_alpha=get("asft_alpha"),
        use_eaft_loss=get("use_eaft_loss"),
        eaft_alpha=get("eaft_alpha"),
        compute_accuracy=get("compute_accuracy"),
        early_stopping_steps=get("early_stopping_steps"),
    )


def _training(recipe: Recipe, files: Mapping[str, Mapping[str, Any]], cwd: Path, output_dir: str | None) -> Any:
    from fl_trainers.config import Training

    get = recipe.get
    resume = get("resume_from_checkpoint")
    return Training(
        output_dir=str(absolute(output_dir or get("output_dir") or "", cwd)),
        overwrite_output_dir=get("overwrite_output_dir"),
        resume_from_checkpoint=str(absolute(resume, cwd)) if isinstance(resume, str) else resume,
        do_train=get("do_train"),
        do_eval=get("do_eval") or get("eval_strategy") != "no",
        do_predict=get("do_predict"),
        predict_with_generate=get("predict_with_generate"),
        plot_loss=get("plot_loss"),
        speed=recipe.launcher.speed,
        speed_without=recipe.launcher.speed_without,
        arguments=arguments(recipe, files),
    )


def _generation(recipe: Recipe) -> Generation:
    from fl_trainers.config import Generation

    return Generation(**{name: recipe.get(name) for name in Generation.model_fields})


def _json_files(recipe: Recipe, base: Callable[[str], Path]) -> dict[str, Mapping[str, Any]]:
    """The JSON files that keys name instead of holding a mapping; the config holds their content."""
    result: dict[str, Mapping[str, Any]] = {}
    for key in _JSON_FILES:
        name = recipe.values.get(key)
        if not isinstance(name, str):
            continue
        path = absolute(name, base(key))
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise RecipeError(f"{key}: the file {path} is not there.", f"ls {path.parent}") from None
        except (OSError, ValueError) as error:
            raise RecipeError(f"{key}: {path} cannot be read as JSON: {error}.") from None
        if not isinstance(content, dict):
            raise RecipeError(f"{key}: {path} must hold a JSON object, found a {type(content).__name__}.")
        result[key] = content
    return result
