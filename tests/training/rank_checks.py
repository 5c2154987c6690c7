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


def deepspeed_memory() -> dict[str, Any]:
    """What DeepSpeed's accelerator for NVIDIA cards takes for free memory, with devices named by numbers and by identifiers."""
    from types import SimpleNamespace
    from unittest import mock

    from fl_trainers import lean, sharding

    lean.reveal("deepspeed")
    import deepspeed.accelerator as accelerators
    import torch
    from deepspeed.accelerator import cuda_accelerator

    nvml = SimpleNamespace(nvmlDeviceGetHandleByIndex=lambda index: index,
                           nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(free=1000 + index))  # fmt: skip
    config = SimpleNamespace(training=SimpleNamespace(arguments={"deepspeed": {"zero_optimization": {"stage": 2}}}))
    found: dict[str, Any] = {}
    for visible in ("3,5", "GPU-9cc34142-caa5-5b13-bfa7-99039b108db8,GPU-1", "MIG-1"):
        with (
            mock.patch.object(cuda_accelerator, "pynvml", nvml),
            mock.patch.object(torch.cuda, "mem_get_info", lambda index: (7 + index, 9)),
            mock.patch.dict("os.environ", {"CUDA_VISIBLE_DEVICES": visible}),
        ):  # fmt: skip
            made = cuda_accelerator.CUDA_Accelerator()
            with mock.patch.object(accelerators, "get_accelerator", lambda made=made: made):
                sharding.free_memory_by_torch(config, {"CUDA_VISIBLE_DEVICES": visible})  # type: ignore[arg-type]
            found[visible] = made.available_memory(0)
    return found
