"""Whether a run can fit into the memory of its devices, asked before anything starts. What it needs is memory.py's estimate."""

from __future__ import annotations

from fl import devices, memory
from fl.errors import RecipeError
from fl.hardware import Accelerator, Hardware
from fl.resolve_model import ModelFacts, model_facts
from fl_trainers.config import Config


def check(
    config: Config, facts: ModelFacts, hardware: Hardware, chosen: tuple[Accelerator, ...], *, asked: str | None = None, force: bool
) -> None:
    """RecipeError where one device certainly has too little memory, with what would fit.

    Processes on the CPU (`asked`: what --devices says) share the host's memory: each has its part.
    """
    count = devices.processes(hardware, chosen, asked)
    sizes = [a.memory_mib for a in chosen if a.memory_mib] if chosen else [(hardware.cpu.memory_mib or 0) // count]
    if force or not sizes or not min(sizes) or facts.parameters is None:
        return
    shape = memory.Shape(
        parameters=facts.parameters, hidden_size=facts.hidden_size or 0, layers=facts.layers or 0, vocabulary=facts.vocab_size or 0
    )
    others = {key: known for key, other in (("ref_model", config.method.reference), ("reward_model", config.method.ppo.reward_model))
              if other is not None and (known := model_facts(other.path, other.kind, other.name).parameters)}  # fmt: skip
    available = min(sizes) * 1024**2
    found = memory.estimate(config, shape, count, others)
    if found.gigabytes * 1e9 <= available:
        return
    cheaper = memory.cheaper(config, shape, available, count, others)
    alone = "this device" if chosen else "this machine"
    what = alone if count == 1 else "each of the chosen devices" if chosen else f"each of {count} processes"
    spread = any(config.training.arguments.get(name) for name in ("deepspeed", "fsdp"))
    rest = "use a smaller model, more devices, or offloading" if spread else "use a smaller model, or shard it: deepspeed=ZERO3.json"
    which = f"{config.model.name}, {config.method.finetuning_type}"
    beside = f", {found.beside / 1e9:.0f} of it for models that are not trained" if found.beside >= 1e9 else ""
    raise RecipeError(
        f"this needs about {found.gigabytes:.0f} GB of memory{beside}, {what} has {available / 1e9:.0f} ({which})",
        ("\n".join(f"fl run … {text}" for text in cheaper) or rest) + "\nfl run … --force   (the estimate is crude)",
    )
