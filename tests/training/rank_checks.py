"""Figures of a saved model by the plainest way there is, one row at a time; see trainer_server.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _labelled(path: str) -> tuple[Any, list[Any]]:
    """The tokenizer of a finished run and its held rows as ids with labels."""
    from transformers import AutoTokenizer

    from fl_trainers.config import Config
    from fl_trainers.data import pipeline
    from fl_trainers.data.formats import Report
    from fl_trainers.progress import Events

    config = Config.read(Path(path))
    tokenizer = AutoTokenizer.from_pretrained(config.training.output_dir)
    report = Report()
    prepared = pipeline.prepare(config, tokenizer, *pipeline.items_of(config, report), report, Events(Path("/dev/null")))
    return tokenizer, [row for rows in prepared.eval.values() for row in rows]


def token_accuracy(path: str) -> float:
    """The mean over held rows of the share of labelled tokens that the saved whole model would choose."""
    import torch
    from transformers import AutoModelForCausalLM

    from fl_trainers.config import Config

    model = AutoModelForCausalLM.from_pretrained(Config.read(Path(path)).training.output_dir).eval()
    shares = []
    for row in _labelled(path)[1]:
        ids, labels = list(row["input_ids"]), list(row["labels"])
        with torch.no_grad():
            best = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        right = [best[place - 1] == label for place, label in enumerate(labels) if place and label != -100]
        shares.append(sum(right) / len(right))
    return sum(shares) / len(shares)


def spoil(folder: str) -> None:
    """Makes one weight of a saved model NaN."""
    from safetensors.torch import load_file, save_file

    weights = load_file(f"{folder}/model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
