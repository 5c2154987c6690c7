"""Mixing and splitting beside those of `datasets`: run inside the training environment."""

from __future__ import annotations

from typing import Any

STRATEGIES = {
    "interleave_under": "first_exhausted", "interleave_over": "all_exhausted", "interleave_once": "all_exhausted_without_replacement",
}  # fmt: skip


def _named(sizes: list[int]) -> list[list[str]]:
    return [[f"{name}{at}" for at in range(size)] for name, size in zip("abc", sizes, strict=False)]


def mixed(sizes: list[int], probabilities: list[float], seed: int) -> dict[str, list[list[str]]]:
    """By strategy: the rows as fl and as `datasets` mixes them, whole and as streams."""
    from fl_trainers import lean

    lean.reveal("datasets", "pandas")
    import datasets

    from fl_trainers.data import mix

    found: dict[str, list[list[str]]] = {}
    for ours, theirs in STRATEGIES.items():
        named = _named(sizes)
        whole = [datasets.Dataset.from_dict({"row": rows}) for rows in named]
        asked: dict[str, Any] = {"probabilities": probabilities or None, "seed": seed, "stopping_strategy": theirs}
        found[ours] = [mix.mix(named, ours, probabilities, seed), datasets.interleave_datasets(whole, **asked)["row"]]
        streams = [rows.to_iterable_dataset() for rows in whole]
        woven = mix.woven([rows.__iter__ for rows in named], ours, probabilities, seed)
        found[f"{ours} streamed"] = [list(woven), [row["row"] for row in datasets.interleave_datasets(streams, **asked)]]
    return {key: [list(one) for one in pair] for key, pair in found.items()}


def save_to_disk(path: str, rows: list[dict[str, Any]]) -> None:
    """A folder as `datasets` saves one."""
    from fl_trainers import lean

    lean.reveal("datasets", "pandas")
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(path)


def halves(size: int, val_size: float, seed: int) -> list[list[list[int]]]:
    """Rows for training and for evaluation as fl and as `datasets` splits them."""
    from fl_trainers import lean

    lean.reveal("datasets", "pandas")
    import datasets

    from fl_trainers.data import mix

    wanted = int(val_size) if val_size > 1 else val_size
    made = datasets.Dataset.from_dict({"row": list(range(size))}).train_test_split(test_size=wanted, seed=seed)
    return [list(mix.split(range(size), val_size, seed)), [list(made["train"]["row"]), list(made["test"]["row"])]]


def refusal(size: int, val_size: float) -> str:
    """The words about a val_size that leaves nothing."""
    from fl_trainers.data import mix
    from fl_trainers.errors import InputError

    try:
        mix.split(range(size), val_size, 42)
    except InputError as error:
        return error.message
    return ""
