"""Recipe values → the fields of the config's method that recipe_methods.py's keys fill. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fl_trainers.config import Badam, LowRank

Get = Callable[[str], Any]


def method_fields(get: Get) -> dict[str, Any]:
    """LLaMA-Pro and optimizers."""
    return {
        "use_llama_pro": get("use_llama_pro"), "low_rank": _low_rank(get), "badam": _badam(get), "use_adam_mini": get("use_adam_mini"),
        "use_muon": get("use_muon"),
    }  # fmt: skip


def _low_rank(get: Get) -> LowRank | None:
    from fl_trainers.config import LowRank

    name: Literal["galore", "apollo"]
    if get("use_galore"):
        name = "galore"
    elif get("use_apollo"):
        name = "apollo"
    else:
        return None
    fields = {field: get(f"{name}_{field}") for field in ("target", "rank", "update_interval", "scale", "proj_type", "layerwise")}
    if name == "apollo":
        fields |= {field: get(f"apollo_{field}") for field in ("proj", "scale_type", "scale_front")}
    return LowRank(kind=name, **fields)


def _badam(get: Get) -> Badam | None:
    from fl_trainers.config import Badam

    return Badam(**{field: get(f"badam_{field}") for field in Badam.model_fields}) if get("use_badam") else None
