"""LLaMA-Factory's keys of losses, LLaMA-Pro and optimizers that TrainingArguments has not. Part of recipe_table.py's table."""

from __future__ import annotations

from typing import Final

from fl.recipe_keys import Key

_SFT = ("stage", ("sft",), "stage: sft")


def _of(switch: str) -> tuple[str, tuple[object, ...], str]:
    return switch, (True,), f"{switch}: true"


_LOSSES: Final = (
    Key(name="use_dft_loss", kind="bool", default=False, needs=_SFT, about="DFT: each token's loss times its own probability."),
    Key(name="use_asft_loss", kind="bool", default=False, needs=_SFT, about="ASFT: DFT, held near the model as it was."),
    Key(name="use_eaft_loss", kind="bool", default=False, needs=_SFT, about="EAFT: each token's loss times how unsure the model is."),
    Key(name="asft_alpha", kind="float", default=0.1, low=0, needs=_of("use_asft_loss"), about="Weight of the anchor."),
    Key(name="eaft_alpha", kind="float", default=1.0, needs=_of("use_eaft_loss"), about="Power of the entropy weight."),
)

_LOW_RANK: Final = tuple(
    key
    for name, title, scale in (("galore", "GaLore", 2.0), ("apollo", "APOLLO", 32.0))
    for key in (
        Key(name=f"use_{name}", kind="bool", default=False, about=f"{title}: moments of matrices in few dimensions; needs {name}-torch."),
        Key(name=f"{name}_target", kind="names", default=("all",), needs=_of(f"use_{name}"), about="Modules, or all linear ones."),
        Key(name=f"{name}_rank", kind="int", default=16, low=1, needs=_of(f"use_{name}"), about="Dimensions kept."),
        Key(name=f"{name}_update_interval", kind="int", default=200, low=1, needs=_of(f"use_{name}"), about="Steps between projections."),
        Key(name=f"{name}_scale", kind="float", default=scale, needs=_of(f"use_{name}"), about="Factor of these matrices' steps."),
        Key(name=f"{name}_layerwise", kind="bool", default=False, needs=_of(f"use_{name}"), about="Step inside the backward pass."),
    )
)

_OPTIMIZERS: Final = (
    *_LOW_RANK,
    Key(name="galore_proj_type", kind="str", default="std", choices=("std", "reverse_std", "right", "left", "full"),
        needs=_of("use_galore"), about="Which side of a matrix is projected."),
    Key(name="apollo_proj", kind="str", default="random", choices=("svd", "random"), needs=_of("use_apollo"), about="Kind of projection."),
    Key(name="apollo_proj_type", kind="str", default="std", choices=("std", "right", "left"), needs=_of("use_apollo"),
        about="Which side of a matrix is projected."),
    Key(name="apollo_scale_type", kind="str", default="channel", choices=("channel", "tensor"), needs=_of("use_apollo"),
        about="One scale a channel or a matrix."),
    Key(name="apollo_scale_front", kind="bool", default=False, needs=_of("use_apollo"), about="Limit growth before scaling."),
    Key(name="use_badam", kind="bool", default=False, about="BAdam: one block of layers at a time; needs the package badam."),
    Key(name="badam_mode", kind="str", default="layer", choices=("layer", "ratio"), needs=_of("use_badam"), about="Blocks or a share."),
    Key(name="badam_start_block", kind="int", low=0, needs=_of("use_badam"), about="First block."),
    Key(name="badam_switch_mode", kind="str", default="ascending", choices=("ascending", "descending", "random", "fixed"),
        needs=_of("use_badam"), about="Order of the blocks."),
    Key(name="badam_switch_interval", kind="int", default=50, low=1, needs=_of("use_badam"), about="Steps a block."),
    Key(name="badam_update_ratio", kind="float", default=0.05, above=0, high=1, needs=_of("use_badam"), about="Share of the weights."),
    Key(name="badam_mask_mode", kind="str", default="adjacent", choices=("adjacent", "scatter"), needs=_of("use_badam"),
        about="Which weights a share takes."),
    Key(name="badam_verbose", kind="int", default=0, low=0, high=2, needs=_of("use_badam"), about="What BAdam prints."),
    Key(name="use_adam_mini", kind="bool", default=False, about="Adam-mini: one rate a block of weights; needs the package adam-mini."),
    Key(name="use_muon", kind="bool", default=False, about="Muon for matrices inside the layers, AdamW for the rest."),
)

METHODS: Final = (
    Key(name="use_llama_pro", kind="bool", default=False, needs=("finetuning_type", ("lora", "freeze"), "finetuning_type: lora and freeze"),
        about="Train the layers that an expansion added."),
    *_LOSSES,
    *_OPTIMIZERS,
)
