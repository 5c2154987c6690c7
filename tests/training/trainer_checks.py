"""Checks that need torch: they run inside the training environment and give back plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_trainers import model
from fl_trainers.config import Config
from fl_trainers.data import pipeline
from fl_trainers.data.collator import Collator
from fl_trainers.data.formats import Report
from fl_trainers.progress import Events


def _open(path: str) -> tuple[Config, Any, pipeline.Prepared]:
    config = Config.read(Path(path))
    events, report = Events(Path(config.run.events)), Report()
    items = pipeline.items_of(config, report)
    tokenizer = model.load_tokenizer(config, model.folder_of(config), pipeline.texts(items[0]), events)
    return config, tokenizer, pipeline.prepare(config, tokenizer, *items, report, events)


def labelled(path: str) -> list[dict[str, Any]]:
    """Each training row as text, and the runs of tokens that count."""
    _, tokenizer, prepared = _open(path)
    rows = []
    for row in prepared.train:
        runs: list[list[int]] = []
        open_run = False
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            assert label in (-100, token, tokenizer.eos_token_id)
            if label >= 0:
                if not open_run:
                    runs.append([])
                runs[-1].append(label)
            open_run = label >= 0
        rows.append(
            {
                "text": tokenizer.decode(row["input_ids"]),
                "counted": [tokenizer.decode(run) for run in runs],
                "length": len(row["input_ids"]),
            }
        )
    return rows


def apart_and_alone(path: str) -> dict[str, float]:
    """The loss of packs whose parts are kept apart, of the same rows alone, and of packs whose parts see each other."""
    import torch

    from fl_trainers import tiny

    config, tokenizer, packed = _open(path)
    plain = config.model_copy(update={"data": config.data.model_copy(update={"neat_packing": False, "packing": False})})
    events, report = Events(Path(config.run.events)), Report()
    alone = pipeline.prepare(plain, tokenizer, *pipeline.items_of(plain, report), report, events)
    made = tiny.model(config.model.path, len(tokenizer), 7).eval()
    made.config.use_cache = False  # as in training; a cache would make one row of the parts
    with torch.no_grad():
        for parameter in made.parameters():  # larger weights: attention to strangers must show
            if parameter.ndim > 1:
                parameter.mul_(6.0)

    def loss(rows: Any, collator: Collator) -> float:
        total = torch.zeros(())
        counted = 0
        for row in rows:
            batch = collator([row])
            batch.pop("num_tokens")
            number = int((batch["labels"][:, 1:] >= 0).sum())
            with torch.no_grad():
                total += made(**batch).loss * number
            counted += number
        return float(total / counted)

    return {
        "apart": loss(packed.train, Collator(0, apart=True)),
        "alone": loss(alone.train, Collator(0)),
        "together": loss(packed.train, Collator(0)),
        "packs": len(packed.train),
        "rows": len(alone.train),
    }


def merged(folder: str, question: str) -> dict[str, Any]:
    """Loads an adapter as its users do, merges it, and answers with both."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    batch = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        before = model(**batch).logits
        whole = model.merge_and_unload()
        whole.save_pretrained(folder + "-merged")
        again = AutoModelForCausalLM.from_pretrained(folder + "-merged").eval()
        made = again.generate(**batch, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(made[0][batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"difference": float((before - again(**batch).logits).abs().max()), "answer": answer}


def write_parquet(path: str, rows: list[dict[str, Any]]) -> None:
    from fl_trainers import lean

    lean.reveal("pandas", "datasets")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def bare_model_folder(path: str, texts: list[str]) -> None:
    """A small base model as a user has one: weights, config and tokenizer, but no chat template."""
    from fl_trainers import tiny

    tokenizer = tiny.tokenizer(texts, "")
    tokenizer.chat_template = None
    tiny.model("builtin/tiny-llama", len(tokenizer), 3).save_pretrained(path)
    tokenizer.save_pretrained(path)
