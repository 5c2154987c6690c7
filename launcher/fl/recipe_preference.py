"""Keys of the stages dpo, orpo, simpo and kto, what does not fit together, and the data that they and rm need. Part of recipe_table.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from fl.errors import RecipeError
from fl.recipe_keys import Key

if TYPE_CHECKING:
    from fl_trainers.config import Dataset, Preference, Stage

Get = Callable[[str], Any]
_PAIRS: Final = ("dpo", "orpo", "simpo")
_STAGES: Final = (*_PAIRS, "kto")
_COMPARED: Final = (*_PAIRS, "rm")
"""Stages whose rows hold a better and a worse answer."""
_ANY = ("stage", _STAGES, "stage: dpo, orpo, simpo and kto")
_PAIR = ("stage", _PAIRS, "stage: dpo, orpo and simpo")
_DPO = ("stage", ("dpo",), "stage: dpo")
_KTO = ("stage", ("kto",), "stage: kto")

PREFERENCE: Final = (
    Key(name="pref_beta", kind="float", default=0.1, above=0, needs=_ANY, about="How much rewards weigh: larger holds the model nearer."),
    Key(name="pref_ftx", kind="float", default=0.0, low=0, needs=_ANY, about="Weight of supervised fine-tuning on the better answer."),
    Key(name="pref_bco_weight", kind="float", default=0.0, low=0, needs=_DPO, about="Weight of binary classification beside the loss."),
    Key(name="pref_loss", kind="str", default="sigmoid", choices=("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"), needs=_DPO,
        about="Loss of stage dpo; orpo and simpo have no reference."),
    Key(name="dpo_label_smoothing", kind="float", default=0.0, low=0, below=0.5, needs=_DPO, about="Share of pairs thought to be wrong."),
    Key(name="simpo_gamma", kind="float", default=0.5, low=0, needs=_PAIR, about="SimPO's margin."),
    Key(name="ld_alpha", kind="float", low=0, high=1, needs=_PAIR, about="LD-DPO: weight of what the longer answer has more."),
    Key(name="kto_chosen_weight", kind="float", default=1.0, above=0, needs=_KTO, about="Weight of liked answers."),
    Key(name="kto_rejected_weight", kind="float", default=1.0, above=0, needs=_KTO, about="Weight of the others."),
)  # fmt: skip


def stage(get: Get) -> Stage:
    """LLaMA-Factory writes orpo and simpo as losses of stage dpo."""
    written: Stage = get("stage")
    if written == "dpo" and get("pref_loss") in ("orpo", "simpo"):
        loss: Stage = get("pref_loss")
        return loss
    return written


def fields(get: Get) -> Preference:
    """The config's part."""
    from fl_trainers.config import Preference

    loss = get("pref_loss")
    return Preference(
        loss="sigmoid" if loss in ("orpo", "simpo") else loss,
        beta=get("pref_beta"),
        ftx=get("pref_ftx"),
        bco_weight=get("pref_bco_weight"),
        label_smoothing=get("dpo_label_smoothing"),
        simpo_gamma=get("simpo_gamma"),
        ld_alpha=get("ld_alpha"),
        kto_chosen_weight=get("kto_chosen_weight"),
        kto_rejected_weight=get("kto_rejected_weight"),
    )


def rule(get: Get) -> Iterator[tuple[str, str]]:
    """What does not fit together, by the key to change."""
    if get("stage") not in (*_STAGES, "rm"):
        return
    for key in ("packing", "neat_packing"):
        if get(key):
            yield key, f"not with stage {get('stage')}: its rows are compared one by one"
    if get("label_smoothing_factor"):
        yield "label_smoothing_factor", "of stage sft; that of stage dpo is dpo_label_smoothing"
    if get("stage") == "rm":
        return
    if get("dpo_label_smoothing") and get("pref_loss") != "sigmoid":
        yield "dpo_label_smoothing", f"only with `pref_loss: sigmoid`, not {get('pref_loss')}"
    if get("pref_bco_weight") and get("pref_loss") in ("orpo", "simpo"):
        yield "pref_bco_weight", f"needs a reference, which {get('pref_loss')} has not"


def check_datasets(stage: str, found: Sequence[Dataset]) -> None:
    """Refuses data of another kind than the stage compares."""
    for dataset in found:
        if dataset.guess:
            continue  # the trainer sees its columns
        if stage in _COMPARED and not dataset.ranking:
            raise RecipeError(
                f"The data set {dataset.name!r} has no pairs of answers, which stage {stage} compares.",
                "`ranking: true` and `columns: {chosen: …, rejected: …}` in its dataset_info.json entry, or stage: sft",
            )
        if stage not in _COMPARED and dataset.ranking:
            raise RecipeError(
                f"The data set {dataset.name!r} holds pairs of answers (`ranking: true`), which stage {stage} cannot use.",
                "stage: dpo or rm",
            )
        if stage == "kto" and dataset.columns.kto_tag is None:
            raise RecipeError(
                f"The data set {dataset.name!r} says of no row whether its answer is liked, which stage kto needs.",
                "`columns: {kto_tag: label}` in its dataset_info.json entry",
            )
