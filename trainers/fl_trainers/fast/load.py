"""What the choice of fast parts needs to know of the device and of the rows, and the steps for what was chosen."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl_trainers import optimizers
from fl_trainers.device import Device
from fl_trainers.fast.choice import PAIRS, Load, Machine
from fl_trainers.progress import world_size


def machine_of(device: Device, model: Any) -> Machine:
    """The device as it is now; the model may not be on it yet."""
    import torch

    head = model.get_output_embeddings()
    plain = type(head) is torch.nn.Linear and head.bias is None
    if device.type != "cuda":
        return Machine(device.type, processes=world_size(), head=plain)
    free, _ = torch.cuda.mem_get_info()
    ranks = world_size()
    for weight in model.parameters():
        held = weight.numel() * weight.element_size()
        free -= 0 if weight.is_cuda else held
        if weight.requires_grad:  # the gradient, two moments in float32, and a copy in 16 bits under autocast
            free -= held * (1 if ranks == 1 else 2) + weight.numel() * 10  # DDP sends gradients from buffers of its own
    if ranks > 1:  # all must choose the same
        least = torch.tensor(free, device="cuda")
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        free = int(least)
    from transformers.utils import is_liger_kernel_available

    hip = torch.version.hip is not None
    kernels = bool(is_liger_kernel_available()) and compiles(os.environ, shutil.which, Path(sysconfig.get_path("include")))
    return Machine("cuda", hip, torch.cuda.get_device_capability(), free, ranks, kernels, compiled_before(os.environ), plain)


def compiled_before(environment: Mapping[str, str]) -> bool:
    """Whether Triton's cache has our kernels and Liger's; one for other shapes costs little beside what is started up first."""
    cache = Path(environment.get("TRITON_CACHE_DIR") or Path(environment.get("TRITON_HOME") or Path.home()) / ".triton" / "cache")
    return all(any(cache.glob(f"*/{name}.cubin")) for name in ("_cross_entropy", "_adamw", "_triton_rope"))


def compiles(environment: Mapping[str, str], which: Callable[[str], str | None], headers: Path) -> bool:
    """Whether Triton can build what launches its kernels: a C compiler, and Python's headers. Images have both, a plain host may not."""
    return bool(environment.get("CC") or which("gcc") or which("clang")) and (headers / "Python.h").is_file()


def load_of(session: Any) -> Load:
    """The longest batch that can come, and how many steps there are. Rows of a stream are as long as cutoff_len; some have two answers."""
    arguments, rows = session.arguments, session.prepared.train
    size = arguments.per_device_train_batch_size
    try:
        batches = -(-len(rows) // (size * world_size()))
        longest = sorted((len(row["input_ids"]) + len(row.get("other_ids", ())) for row in rows), reverse=True)[:size]
    except TypeError:
        answers = 2 if session.config.method.stage in PAIRS else 1
        longest, batches = [answers * session.config.data.cutoff_len] * size, 10**6
    steps = -(-batches // arguments.gradient_accumulation_steps) * arguments.num_train_epochs
    return Load(sum(longest), arguments.max_steps if arguments.max_steps > 0 else int(steps))


def keep_last(model: Any, count: int) -> None:
    """The last `count` layers keep their activations; what recomputes the others was switched on before."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers[-count:]:
        layer.gradient_checkpointing = False


def steps(loop: Any, model: Any) -> Any:
    """What runs batches without padding. model: as the Trainer has wrapped it."""
    import torch

    from fl_trainers.fast.choice import GRAPH_TOKENS
    from fl_trainers.fast.step import Step

    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    inner = loop.accelerator.unwrap_model(model)
    spread = loop.is_deepspeed_enabled  # its engine holds the weights in what it computes in
    dtype = None if spread else kinds.get(loop.accelerator.mixed_precision)
    step = Step(
        inner, dtype, ranks=world_size(),
        outer=None if model is inner or loop.fast.graphs else model, compiled=loop.fast.liger and loop.device_of_run.type == "cuda",
        whole="loss" in loop.config_of_run.training.speed_without, masters=loop.masters,
    )  # fmt: skip
    _take(loop, step)
    if not loop.fast.graphs:
        return step
    from fl_trainers.fast.graphs import Graphs

    step.masters.fresh = loop.args.gradient_accumulation_steps == 1
    graphs = Graphs(step, loop.args.per_device_train_batch_size, GRAPH_TOKENS)
    model.zero_grad = graphs.zero
    return graphs


def keeps_copies(loop: Any) -> bool:
    """Whether trained weights have 16-bit copies: one process, bf16 under autocast, and nothing that waits for autograd's own gradients."""
    config = loop.config_of_run
    return (
        loop.fast.padding_free and loop.device_of_run.type == "cuda" and world_size() == 1 and bool(loop.args.bf16)
        and not (loop.is_deepspeed_enabled or loop.is_fsdp_enabled) and optimizers.name_of(config) in (None, "loraplus")
        and "copies" not in config.training.speed_without
    )  # fmt: skip


def one_pass(loop: Any) -> Any:
    """AdamW that makes the copies as it goes, where the recipe asks for AdamW and Triton may compile; else None."""
    if not (loop.fast.liger and keeps_copies(loop)) or optimizers.name_of(loop.config_of_run) is not None:
        return None
    if getattr(loop.args.optim, "value", loop.args.optim) not in ("adamw_torch", "adamw_torch_fused"):
        return None
    import torch

    if any(weight.dtype != torch.float32 or not weight.is_contiguous() for weight in loop.model.parameters() if weight.requires_grad):
        return None
    from fl_trainers.fast.adam import AdamW

    _, options = loop.get_optimizer_cls_and_kwargs(loop.args, loop.model)
    return AdamW(optimizers.groups(loop, loop.model), loop.masters, **{name: options[name] for name in ("lr", "betas", "eps")})


def makes_copies(optimizer: Any) -> bool:
    """Whether it is one_pass's, perhaps as accelerate has wrapped it."""
    return type(getattr(optimizer, "optimizer", optimizer)).__module__ == "fl_trainers.fast.adam"


def _take(loop: Any, step: Any) -> None:
    """Makes the copies: weights are where they will stay, and as a checkpoint left them."""
    import torch

    if step.dtype is not torch.bfloat16 or not keeps_copies(loop):
        return
    head = [] if step.whole_logits else [step.head.weight]
    weights = (*loop.masters.asked, *head)
    loop.masters.take((weight for weight in weights if weight.requires_grad and weight.dtype == torch.float32), step.dtype)
    if not makes_copies(loop.optimizer):
        getattr(loop.optimizer, "optimizer", loop.optimizer).register_step_post_hook(loop.masters.refresh)
