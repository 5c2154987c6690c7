"""Run inside the trainer's environment with a rollout row's vLLM on its path: an adapter, read by vLLM's own code, against peft's."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch


def main(folder: str, tokens: list[int], rank: int) -> dict[str, Any]:
    """How far apart the answers are; what vLLM read."""
    from peft import AutoPeftModelForCausalLM
    from vllm import __version__
    from vllm.config.lora import LoRAConfig
    from vllm.lora import lora_model
    from vllm.lora.peft_helper import PEFTHelper

    lora_model.PIN_MEMORY = False  # pinned memory belongs to a GPU
    config = PEFTHelper.from_local_dir(folder, 128)
    config.validate_legal(LoRAConfig(max_lora_rank=rank))
    modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    adapter = lora_model.LoRAModel.from_local_checkpoint(folder, modules, config, lora_model_id=1, device="cpu", dtype=torch.float32)
    ids = torch.tensor([tokens])
    with torch.no_grad():
        trained = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        wanted = trained(ids).logits
        base = trained.unload()
        without = base(ids).logits
        for name, lora in adapter.loras.items():
            base.get_submodule(name).weight += lora.scaling * lora.lora_b @ lora.lora_a
        found = base(ids).logits
    return {
        "vllm": __version__, "modules": len(adapter.loras), "ranks": sorted({lora.rank for lora in adapter.loras.values()}),
        "difference": float((found - wanted).abs().max()), "trained": float((without - wanted).abs().max()),
    }  # fmt: skip


if __name__ == "__main__":
    json.dump(main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])), sys.stdout)
