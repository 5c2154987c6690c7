"""Optimizers that TrainingArguments has not: LoRA+, Muon, GaLore, APOLLO, BAdam, Adam-mini. The last four are extras of the stacks."""

from __future__ import annotations

import difflib
import importlib.util
import types
from typing import Any

from fl_trainers.config import Config, LowRank
from fl_trainers.errors import InputError
from fl_trainers.progress import world_size

PACKAGES = {"galore": ("galore_torch", "galore-torch"), "apollo": ("apollo_torch", "apollo-torch"), "badam": ("badam", "badam"),
            "adam_mini": ("adam_mini", "adam-mini")}  # fmt: skip
"""Import name and distribution of each optional optimizer."""

OTHERS = (
    ("galore", "galore_torch"), ("apollo", "apollo_torch"), ("lomo", "lomo_optim"), ("adalomo", "lomo_optim"), ("grokadamw", "grokadamw"),
    ("schedule_free", "schedulefree"), ("stable_adamw", "optimi"), ("adamw_anyprecision", "torchdistx"), ("adamw_torch_4bit", "torchao"),
    ("adamw_torch_8bit", "torchao"),
)  # fmt: skip
"""What `optim` needs, by the beginning of its name."""
BITSANDBYTES = ("8bit", "paged_", "rmsprop_bnb", "lion_32bit", "ademamix")


def name_of(config: Config) -> str | None:
    """Which of them the recipe asks for; None: one of TrainingArguments."""
    method = config.method
    if method.low_rank is not None:
        return method.low_rank.kind
    asked = {
        "badam": method.badam is not None, "adam_mini": method.use_adam_mini, "muon": method.use_muon,
        "loraplus": method.lora.loraplus_lr_ratio is not None and method.finetuning_type == "lora",
    }  # fmt: skip
    return next((name for name, wanted in asked.items() if wanted), None)


def check(config: Config) -> None:
    """Before the model is loaded: the package is there, and torch has the optimizer. This imports torch."""
    name = name_of(config)
    optim = str(config.training.arguments.get("optim", ""))
    _check_optim(optim)
    if "8bit" in optim and (name == "galore" or optim.startswith("galore_")):
        import torch

        if not torch.cuda.is_available():
            raise InputError(f"optim: {optim}: GaLore's 8-bit AdamW calls torch.cuda, which is not here", "optim: adamw_torch")
    if name in PACKAGES:
        module, package = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise InputError(f"use_{name} needs the package {package}, which this environment does not have",
                             f"`fl run` without --python and --image brings it; or leave use_{name} out")  # fmt: skip
    if name == "muon":
        import torch

        if not hasattr(torch.optim, "Muon"):
            raise InputError(f"use_muon needs torch.optim.Muon; torch {torch.__version__} does not have it", "a stack with a newer torch")
    layerwise = config.method.low_rank is not None and config.method.low_rank.layerwise
    if world_size() > 1 and (layerwise or name == "badam"):
        key = "use_badam" if name == "badam" else f"{name}_layerwise"
        raise InputError(f"{key} steps on the gradients of one process: not with {world_size()}",
                         "`--devices` with one device, or leave it out")  # fmt: skip
    accumulated = int(config.training.arguments.get("gradient_accumulation_steps", 1)) != 1
    if layerwise and accumulated:
        raise InputError(f"{name}_layerwise steps inside the backward pass: no gradients are accumulated",
                         f"gradient_accumulation_steps: 1, or {name}_layerwise: false")  # fmt: skip
    if layerwise and config.training.arguments.get("fp16"):
        raise InputError(f"{name}_layerwise steps inside the backward pass, where fp16's loss scale is still on the gradients",
                         f"bf16 or pure_bf16, or {name}_layerwise: false")  # fmt: skip
    badam = config.method.badam
    if badam is not None and badam.mode == "layer" and badam.switch_mode == "fixed" and badam.start_block is None:
        raise InputError("badam_switch_mode: fixed trains one block, and none is named", "badam_start_block: its number, from 0")


def _check_optim(name: str) -> None:
    """The package behind a value of `optim`."""
    module = next((module for beginning, module in OTHERS if name.startswith(beginning)), None)
    if module is None and any(part in name for part in BITSANDBYTES):
        module = "bitsandbytes"
    if module is not None and importlib.util.find_spec(module) is None:
        raise InputError(f"optim: {name} needs the package {module}, which this environment does not have", "optim: adamw_torch")


class Chosen:
    """Before a Trainer's class in the bases of a loop: the optimizer and the schedule that the recipe asks for."""

    args: Any
    model: Any
    optimizer: Any
    state: Any
    config_of_run: Config

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = create(self, self.config_of_run)
        return super().create_optimizer(model)  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        fill_schedule(self.args, num_training_steps)
        try:
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            kind = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
            raise InputError(f"lr_scheduler_type: {kind}: {error}", f"lr_scheduler_kwargs: what {kind} takes") from error

    def _determine_best_metric(self, metrics: dict[str, Any], trial: Any) -> bool:
        """transformers raises a KeyError, after hours perhaps."""
        asked = self.args.metric_for_best_model
        name = asked if asked is None or asked.startswith("eval_") else f"eval_{asked}"
        if name is not None and name not in metrics:
            timing = ("runtime", "per_second", "_steps")
            known = [key.removeprefix("eval_") for key in sorted(metrics) if key.startswith("eval_") and not key.endswith(timing)]
            short = asked.removeprefix("eval_")
            near = difflib.get_close_matches(short, known, 1, 0.5) or [key for key in known if short in key]
            raise InputError(f"metric_for_best_model: an evaluation gives no {asked}; it gives {', '.join(known)}",
                             f"metric_for_best_model: {near[0] if near else 'loss' if 'loss' in known else known[-1]}")  # fmt: skip
        if name is not None and metrics[name] is None:  # a reward that no answer got
            return False
        return bool(super()._determine_best_metric(metrics, trial))  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from fl_trainers import adapters, read_back

        into = self.model if model is None else model
        if self._whole() and read_back.otherwise_named(into, resume_from_checkpoint):
            read_back.into(into, resume_from_checkpoint)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        adapters.keep_small(self.config_of_run, into)

    def _load_best_model(self) -> None:
        from fl_trainers import adapters, read_back

        best = str(self.state.best_model_checkpoint)
        if self._whole() and read_back.otherwise_named(self.model, best):
            read_back.into(self.model, best)
            return
        super()._load_best_model()  # type: ignore[misc]
        adapters.keep_small(self.config_of_run, self.model)

    def _whole(self) -> bool:
        """Whether checkpoints are files of whole weights."""
        given = self.config_of_run.training.arguments
        return self.config_of_run.method.finetuning_type in ("full", "freeze") and not (given.get("deepspeed") or given.get("fsdp"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """GaLore and APOLLO keep objects in their state."""
        optim = str(self.config_of_run.training.arguments.get("optim", ""))
        if checkpoint is not None and optim.endswith("_layerwise"):  # its schedule would begin anew, too
            family = optim.split("_")[0]
            raise InputError(f"optim: {optim} keeps nothing in checkpoints, so that no run can go on from {checkpoint}",
                             f"use_{family}: true and {family}_layerwise: true, or `overwrite_output_dir: true`")  # fmt: skip
        if checkpoint is None or not _projects(self.config_of_run):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        from fl_trainers import layerwise

        layerwise.allow_projectors()
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        layerwise.place_projectors(getattr(self.optimizer, "optimizer", self.optimizer))


def _projects(config: Config) -> bool:
    """Whether gradients are projected, by a key of ours or by one of transformers' optimizers."""
    return config.method.low_rank is not None or str(config.training.arguments.get("optim", "")).startswith(("galore_", "apollo_"))


def create(loop: Any, config: Config) -> Any:
    """The optimizer for the Trainer's model, or None where it makes its own."""
    name = name_of(config)
    if name is None:
        return None
    if name in PACKAGES:
        check(config)
    made = {"loraplus": _loraplus, "muon": _muon, "galore": _low_rank, "apollo": _low_rank, "badam": _badam, "adam_mini": _adam_mini}
    return made[name](loop, config)


def fill_schedule(args: Any, steps: int) -> None:
    """warmup_stable_decay: a third of what follows the warm-up is stable where the recipe does not say, as in LLaMA-Factory."""
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) == "warmup_stable_decay":
        rest = steps - args.get_warmup_steps(steps)
        args.lr_scheduler_kwargs = {"num_stable_steps": rest // 3, "num_decay_steps": rest - rest // 3, **(args.lr_scheduler_kwargs or {})}


def groups(loop: Any, model: Any, but: set[int] = frozenset()) -> list[dict[str, Any]]:  # type: ignore[assignment]
    """Trained parameters with and without weight decay, those in `but` left out."""
    decayed = set(loop.get_decay_parameter_names(model))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in but]
    groups = [
        {"params": [parameter for name, parameter in named if name in decayed], "weight_decay": loop.args.weight_decay},
        {"params": [parameter for name, parameter in named if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _loraplus(loop: Any, config: Config) -> Any:
    """B of each adapter learns `loraplus_lr_ratio` times as fast as A."""
    from peft.optimizers import create_loraplus_optimizer

    lora = config.method.lora
    kind, options = loop.get_optimizer_cls_and_kwargs(loop.args, loop.model)
    return create_loraplus_optimizer(
        model=loop.model, optimizer_cls=kind, loraplus_lr_ratio=lora.loraplus_lr_ratio, loraplus_weight_decay=loop.args.weight_decay,
        loraplus_lr_embedding=lora.loraplus_lr_embedding, **options,
    )  # fmt: skip


def _muon(loop: Any, config: Config) -> Any:
    """Matrices inside the layers by Muon, with steps as large as AdamW's; embeddings, head and vectors by AdamW."""
    from fl_trainers.muon import MuonAndAdamW

    args, model = loop.args, loop.model
    matrices = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    muon = {"params": [parameter for _, parameter in matrices], "weight_decay": args.weight_decay, "muon": True}
    rest = [{**group, "muon": False} for group in groups(loop, model, {id(parameter) for _, parameter in matrices})]
    return MuonAndAdamW(
        [group for group in (muon, *rest) if group["params"]],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


def _low_rank(loop: Any, config: Config) -> Any:
    """GaLore and APOLLO: moments of the chosen matrices are kept in few dimensions."""
    import torch

    from fl_trainers import adapters

    wanted = config.method.low_rank
    if wanted is None:
        raise AssertionError("asked for a low-rank optimizer that the config has not")
    names = set(adapters.targets(loop.model, f"{wanted.kind}_target", wanted.target))
    chosen = [
        parameter
        for name, module in loop.model.named_modules()
        if isinstance(module, torch.nn.Linear) and (name in names or names & set(name.split(".")))
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad and parameter.ndim == 2
    ]
    if not chosen:
        raise InputError(f"{wanted.kind}_target: no matrix that is trained is among {', '.join(sorted(names))}", "finetuning_type: full")
    kind, options = _low_rank_class(loop, wanted), _adam(loop)
    special = {"params": chosen, "weight_decay": loop.args.weight_decay, **_low_rank_group(wanted)}
    made = [special, *groups(loop, loop.model, {id(parameter) for parameter in chosen})]
    if wanted.layerwise:
        from fl_trainers.layerwise import LayerWise

        return LayerWise(kind, made, options)
    return kind(made, **options)


def _adam(loop: Any) -> dict[str, Any]:
    args = loop.args
    if str(getattr(args.optim, "value", args.optim)) == "adafactor":
        return {"lr": args.learning_rate, "scale_parameter": False, "relative_step": False}
    return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}


def _low_rank_class(loop: Any, wanted: LowRank) -> Any:
    """The package's class for `optim`."""
    optim = str(getattr(loop.args.optim, "value", loop.args.optim))
    known: dict[str, Any]
    if wanted.kind == "apollo":
        from apollo_torch import APOLLOAdamW

        known = dict.fromkeys(("adamw_torch", "adamw_torch_fused"), APOLLOAdamW)
    else:
        from galore_torch import GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit

        known = {
            **dict.fromkeys(("adamw_torch", "adamw_torch_fused"), GaLoreAdamW), "adafactor": GaLoreAdafactor,
            **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), GaLoreAdamW8bit),
        }  # fmt: skip
    if optim not in known:
        raise InputError(f"use_{wanted.kind} with optim: {optim}", f"optim: one of {', '.join(known)}")
    return known[optim]


def _low_rank_group(wanted: LowRank) -> dict[str, Any]:
    common = {"rank": wanted.rank, "update_proj_gap": wanted.update_interval, "scale": wanted.scale, "proj_type": wanted.proj_type}
    if wanted.kind == "galore":
        return common
    return {**common, "proj": wanted.proj, "scale_type": wanted.scale_type, "scale_front": wanted.scale_front}


def _badam(loop: Any, config: Config) -> Any:
    """One block of layers at a time."""
    from badam import clip_grad_norm_old_version

    from fl_trainers.blockwise import Blocks, Share

    wanted = config.method.badam
    if wanted is None:
        raise AssertionError("asked for BAdam that the config has not")
    kind, options = loop.get_optimizer_cls_and_kwargs(loop.args, loop.model)
    named = [(name, weight) for name, weight in loop.model.named_parameters() if weight.requires_grad or wanted.mode == "ratio"]
    loop.accelerator.clip_grad_norm_ = types.MethodType(clip_grad_norm_old_version, loop.accelerator)
    made = groups(loop, loop.model)
    if wanted.mode == "ratio":
        return Share(
            param_groups=made, named_parameters_list=named, update_ratio=wanted.update_ratio, mask_mode=wanted.mask_mode,
            verbose=wanted.verbose, include_embedding=False, lr=loop.args.learning_rate, betas=(loop.args.adam_beta1, loop.args.adam_beta2),
            eps=loop.args.adam_epsilon,
        )  # fmt: skip
    return Blocks(
        base_optimizer=kind(made, **options), named_parameters_list=named, block_prefix_list=None,
        switch_block_every=wanted.switch_interval, start_block=wanted.start_block, switch_mode=wanted.switch_mode, verbose=wanted.verbose,
    )  # fmt: skip


def _adam_mini(loop: Any, config: Config) -> Any:
    """One learning rate for each block of a matrix in place of one for each weight."""
    from fl_trainers import mini

    args, settings = loop.args, getattr(loop.model.config, "text_config", None) or loop.model.config
    return mini.make(
        loop.model.named_parameters(), settings, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )  # fmt: skip
