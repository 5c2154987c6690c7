"""What DeepSpeed and FSDP take for granted and a single process or a small image does not have."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

from fl_trainers.config import Config
from fl_trainers.errors import InputError
from fl_trainers.progress import Events, log


def join_alone(config: Config, environ: MutableMapping[str, str]) -> None:
    """Both want a process group, also where one process is the whole of it: what torchrun would have set."""
    arguments = config.training.arguments
    if "WORLD_SIZE" in environ or not (arguments.get("deepspeed") or arguments.get("fsdp")):
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )  # fmt: skip


def without_training(config: Config, events: Events) -> Config:
    """The config of a run that only evaluates or predicts: what spreads gradients and optimizer alone has nothing to do there.

    InputError where the libraries spread weights only together with an optimizer.
    """
    arguments = config.training.arguments
    if config.training.do_train or not (arguments.get("deepspeed") or arguments.get("fsdp")):
        return config
    if arguments.get("fsdp"):
        raise InputError("fsdp spreads weights only while it trains, and `do_train` is false",
                         "leave fsdp out: each device then holds the model; a deepspeed file with ZeRO stage 3 spreads it")  # fmt: skip
    if zero_stage(config) == 3:
        return config
    events.warn("deepspeed", "nothing is trained, so ZeRO below stage 3 has nothing to spread: the run goes on without it")
    return _with(config, deepspeed=None)


def _with(config: Config, **arguments: Any) -> Config:
    """The config with other training arguments; None takes one away."""
    kept = {key: value for key, value in {**config.training.arguments, **arguments}.items() if value is not None or key not in arguments}
    return config.model_copy(update={"training": config.training.model_copy(update={"arguments": kept})})


def without_offload(config: Config, events: Events) -> Config:
    """The config where offloading does what it can here.

    On the CPU everything is where it would be offloaded to. Elsewhere DeepSpeed's own Adam for the CPU is compiled when it is first used:
    where that cannot be done torch's, which is slower, steps on the CPU.
    """
    arguments = config.training.arguments
    said = "everything is in the processor's memory already, so nothing is offloaded"
    zero = (arguments.get("deepspeed") or {}).get("zero_optimization") if isinstance(arguments.get("deepspeed"), dict) else None
    away = [key for key in OFFLOADS if isinstance(zero, dict) and (zero.get(key) or {}).get("device") == "cpu"]
    if config.run.lane == "cpu" and away:
        events.warn("offload", said)
        kept = {key: value for key, value in (zero or {}).items() if key not in away}
        return _with(config, deepspeed={**arguments["deepspeed"], "zero_optimization": kept})
    if "offload_optimizer" in away and not _compiles() and arguments["deepspeed"].get("zero_force_ds_cpu_optimizer", True):
        events.warn("offload", "DeepSpeed's Adam for the CPU cannot be compiled here, so torch's, which is slower, steps there")
        return _with(config, deepspeed={**arguments["deepspeed"], "zero_force_ds_cpu_optimizer": False})
    words, settings = str(arguments.get("fsdp") or "").split(), arguments.get("fsdp_config") or {}
    keys = [key for key in ("cpu_offload", "fsdp_offload_params", "offload_params") if settings.get(key)]
    if config.run.lane == "cpu" and words and ("offload" in words or keys):
        events.warn("offload", said)
        return _with(config, fsdp=" ".join(word for word in words if word != "offload"),
                     fsdp_config={key: value for key, value in settings.items() if key not in keys})  # fmt: skip
    return config


OFFLOADS: Final = ("offload_optimizer", "offload_param")


def _compiles() -> bool:
    """Whether DeepSpeed can build its operations: with a C++ compiler, and the toolkit of CUDA where torch is one for it."""
    import torch
    from torch.utils import cpp_extension

    return shutil.which("c++") is not None and (torch.version.cuda is None or cpp_extension.CUDA_HOME is not None)


def meet(config: Config) -> None:
    """Before weights are read: ZeRO-3 spreads them while they are, and asks DeepSpeed's own account of the processes how many there are.

    On the CPU nobody has opened that account yet: accelerate does for accelerators only.
    """
    if zero_stage(config) != 3:
        return
    import torch
    from deepspeed import comm

    if torch.distributed.is_initialized() and not comm.is_initialized():
        comm.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)


def take_fsdp(config: Config) -> None:
    """Before the Trainer is made: on the CPU accelerate leaves FSDP out without a word, and trains as DDP, though torch can do it there.

    What is written here for a moment is read once, when accelerate decides, and becomes FSDP.
    """
    if not config.training.arguments.get("fsdp"):
        return
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    state = PartialState._shared_state
    if state.get("distributed_type") == DistributedType.MULTI_CPU:
        state["distributed_type"] = DistributedType.MULTI_XPU


def check_taken(config: Config, **taken: bool) -> None:
    """InputError for what the recipe asks for and the libraries have left out in silence."""
    for name, here in taken.items():
        if config.training.arguments.get(name) and not here:
            raise InputError(f"{name} is set, but the libraries take no part of it on this device", f"leave {name} out")


def zero_stage(config: Config) -> int:
    """DeepSpeed's: 1 spreads the optimizer's state over the devices, 2 gradients too, 3 the weights too; 0: nothing, or no DeepSpeed."""
    settings = config.training.arguments.get("deepspeed")
    found = settings.get("zero_optimization") if isinstance(settings, dict) else None
    return int(found.get("stage") or 0) if isinstance(found, dict) else 0


def spreads_weights(config: Config) -> str | None:
    """What keeps each weight in parts on several devices: nobody holds a whole one outside of the layer that computes with it."""
    return "ZeRO-3" if zero_stage(config) == 3 else "fsdp" if config.training.arguments.get("fsdp") else None


def check_beside(config: Config) -> None:
    """InputError where models that stand beside the trained one would have no weights in all processes but one."""
    method, settings = config.method, config.training.arguments.get("fsdp_config") or {}
    sparing = settings.get("cpu_ram_efficient_loading", settings.get("fsdp_cpu_ram_efficient_loading", False))
    copied = method.stage in ("dpo", "kto", "ppo") and method.finetuning_type not in ("lora", "oft")
    if config.training.arguments.get("fsdp") and str(sparing).lower() == "true" and (copied or method.reference or method.ppo.reward_model):
        raise InputError(f"stage {method.stage} with fsdp_config.cpu_ram_efficient_loading: one process reads the weights, "
                         "but a reference or reward model needs them in each", "cpu_ram_efficient_loading: false")  # fmt: skip


FULL: Final = "FULL_STATE_DICT"
GATHER: Final = "stage3_gather_16bit_weights_on_model_save"


def check_saving(config: Config) -> None:
    """For stages whose value head has a file of its own: InputError where spread weights are never brought together.

    A round of stage ppo has several updates, each of which would move a schedule that DeepSpeed itself keeps.
    """
    stage, settings = config.method.stage, config.training.arguments.get("fsdp_config") or {}
    kind = settings.get("state_dict_type", settings.get("fsdp_state_dict_type", FULL))
    why = "the value head's file is written from whole weights"
    if config.training.arguments.get("fsdp") and kind != FULL:
        raise InputError(f"stage {stage} with fsdp_config.state_dict_type: {kind}: {why}", f"state_dict_type: {FULL}")
    if zero_stage(config) == 3 and not config.training.arguments["deepspeed"]["zero_optimization"].get(GATHER):
        raise InputError(f"stage {stage} with ZeRO-3: {why}", f'"{GATHER}": true in the file\'s zero_optimization')
    deepspeed = config.training.arguments.get("deepspeed")
    if stage == "ppo" and isinstance(deepspeed, dict) and deepspeed.get("scheduler"):
        raise InputError("stage ppo with a scheduler in the deepspeed file: it counts updates, of which a round has several",
                         "leave it out; `lr_scheduler_type:` in the recipe counts rounds")  # fmt: skip


def still(config: Config, model: Any) -> Any:
    """A model that stands beside the trained one and learns nothing, spread over the devices as that one's weights are; else as it was.

    Quantized weights stay whole on each device. The model given back is called as the one given.
    """
    if spreads_weights(config) is None or any(type(weight).__module__.startswith("bitsandbytes") for weight in model.parameters()):
        return model
    import torch

    if zero_stage(config) == 3:
        import deepspeed

        dtype, zero = next(model.parameters()).dtype, config.training.arguments["deepspeed"]["zero_optimization"]
        settings = {
            "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": dtype == torch.bfloat16}, "fp16": {"enabled": dtype == torch.float16},
            "zero_optimization": {"stage": 3, **{key: zero[key] for key in ("offload_param",) if key in zero}},
        }  # fmt: skip
        engine = deepspeed.initialize(model=model, config=settings)[0]
        engine.eval()
        return engine
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    offloaded = (config.training.arguments.get("fsdp_config") or {}).get("cpu_offload")
    policy = CPUOffloadPolicy() if offloaded else OffloadPolicy()
    names = getattr(model, "_no_split_modules", None) or ()
    for layer in [module for module in model.modules() if type(module).__name__ in names]:
        fully_shard(layer, offload_policy=policy)
    return fully_shard(model, offload_policy=policy).eval()


DEAD_AFTER: Final = 900
"""Seconds without a new file after which nobody builds any more."""


def forget_dead_builds(environ: Mapping[str, str]) -> list[Path]:
    """torch waits without end and without a word for a `lock` that a killed run left in the middle of a build; gives those taken away."""
    home = Path(environ.get("TORCH_EXTENSIONS_DIR") or "/nowhere")
    gone = []
    for lock in sorted(home.glob("*/lock")):
        try:
            newest = max(path.stat().st_mtime for path in (lock.parent, *lock.parent.iterdir()))
            if time.time() - newest > DEAD_AFTER:
                lock.unlink()
                gone.append(lock)
                log.warning("%s: a build that a run left unfinished is made again", lock.parent)
        except OSError:  # another run was faster, or it is not ours
            continue
    return gone


def without_compiler(config: Config) -> None:
    """On the CPU DeepSpeed compiles collectives over shared memory and fails where there is no compiler, though gloo has the same."""
    if not config.training.arguments.get("deepspeed") or config.run.lane != "cpu" or shutil.which("c++"):
        return
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder.is_compatible = lambda self, verbose=False: False
    log.info("DeepSpeed: no C++ compiler here, so ranks meet over gloo and not over shared memory")


def free_memory_by_torch(config: Config, environ: Mapping[str, str]) -> None:
    """DeepSpeed asks NVML for the free memory by the numbers in CUDA_VISIBLE_DEVICES, and fails where devices are named by identifiers."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if not config.training.arguments.get("deepspeed") or not visible or all(part.strip().isdigit() for part in visible.split(",")):
        return
    import torch
    from deepspeed.accelerator import get_accelerator

    get_accelerator().available_memory = lambda device_index=None: torch.cuda.mem_get_info(device_index)[0]
