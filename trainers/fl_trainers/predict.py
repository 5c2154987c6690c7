"""Answers to the rows held for evaluation, and how near they are to the wanted ones: `predict_with_generate`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fl_trainers import artefacts, metrics
from fl_trainers.config import Config, Generation
from fl_trainers.data.encode import Settings, settings_of, shares, turns
from fl_trainers.data.formats import Conversation, Report
from fl_trainers.errors import InputError, TrainingError
from fl_trainers.progress import log, rank, world_size

FILE = "generated_predictions.jsonl"


@dataclass(frozen=True)
class Question:
    """What the model is given, and the answer that is wanted."""

    ids: list[int]
    wanted: list[int]


def check(config: Config) -> None:
    """Refuses what cannot generate, before the model is loaded."""
    deepspeed = config.training.arguments.get("deepspeed")
    spread = deepspeed.get("zero_optimization", {}).get("stage") == 3 if isinstance(deepspeed, dict) else False
    if config.training.predict_with_generate and (spread or config.training.arguments.get("fsdp")):
        raise InputError("predict_with_generate: the weights are spread over the processes, which cannot answer one by one",
                         "ZeRO stage 2, or predict in a run of its own with the saved model")  # fmt: skip
    if config.training.predict_with_generate and config.method.stage != "sft":
        raise InputError(f"predict_with_generate is for stage sft, not {config.method.stage}", "leave it out")


def questions(tokenizer: Any, rows: Sequence[tuple[str, Any]], settings: Settings, report: Report) -> list[Question]:
    """One question a row: all before its last answer, cut as in training."""
    found = []
    for where, conversation in rows:
        if not isinstance(conversation, Conversation):
            raise InputError(f"{where}: a plain text has no answer to predict", "alpaca, sharegpt or openai rows")
        try:
            parts = turns(tokenizer, conversation, settings)
        except ValueError as error:
            report.count(str(error), where)
            continue
        source = "".join(part.source + part.target for part in parts[:-1]) + parts[-1].source
        target = parts[-1].target.rstrip("\n")  # behind the end token, where no answer comes
        ids, wanted = tokenizer([source, target], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        kept, kept_wanted = shares(len(ids), len(wanted), settings.cutoff_len)
        if kept < len(ids) or kept_wanted < len(wanted):
            report.count(f"cut to {settings.cutoff_len} tokens", where)
        found.append(Question(ids[:kept], wanted[:kept_wanted]))
    return found


def arguments(settings: Generation, tokenizer: Any, ends: Sequence[int], beams: int | None = None) -> dict[str, Any]:
    """What `generate` takes. Temperature 0 is the likeliest token."""
    sampled = settings.do_sample and settings.temperature > 0
    beams = beams or settings.num_beams
    made: dict[str, Any] = {
        "do_sample": sampled, "num_beams": beams, "max_new_tokens": settings.max_new_tokens,
        "repetition_penalty": settings.repetition_penalty, "use_cache": True,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": list(ends),
        "temperature": settings.temperature if sampled else None, "top_p": settings.top_p if sampled else None,
        "top_k": settings.top_k if sampled else None,
    }  # fmt: skip
    return made | ({"length_penalty": settings.length_penalty} if beams > 1 else {})


def end_tokens(config: Config, tokenizer: Any, model: Any) -> list[int]:
    """Whatever ends an answer: the tokenizer's end, the model's own, and those of the recipe's template."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])]
    if config.data.template:
        from fl_trainers.data import templates

        vocabulary = tokenizer.get_vocab()
        found += [vocabulary[token] for token in templates.find(config.data.template).end if token in vocabulary]
    return list(dict.fromkeys(found))


@dataclass
class Judge:
    """Generates answers to the held rows and measures them; `loop` is set when it is built."""

    config: Config
    tokenizer: Any
    items: dict[str, list[Any]]
    report: Report = field(default_factory=Report)
    loop: Any = None
    _asked: dict[str, list[Question]] = field(default_factory=dict)

    def asked(self, key: str) -> list[Question]:
        """The questions of one of the held sets, tokenized once."""
        if key not in self._asked:
            settings = replace(settings_of(self.config), one_thought=True)
            self._asked[key] = questions(self.tokenizer, self.items[key], settings, self.report)
        return self._asked[key]

    def scores(self, prefix: str) -> dict[str, float]:
        """Of an evaluation on the way, by the Trainer's prefix (`eval`, or `eval_NAME` of one set); no longer than cutoff_len in all."""
        name = prefix.removeprefix("eval").removeprefix("_")
        key = name if name in self.items else next(iter(self.items))
        longest = self.config.training.arguments.get("generation_max_length") or self.config.data.cutoff_len
        asked = self.asked(key)
        answers = self.answers(asked, longest=longest)
        found = metrics.similarity(zip(self.texts(answers), self.texts([one.wanted for one in asked]), strict=True))
        return {f"{prefix}_{name}": round(value, 4) for name, value in found.items()}

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Ids as text, special tokens left out unless the recipe keeps them."""
        made = self.tokenizer.batch_decode(list(rows), skip_special_tokens=self.config.generation.skip_special_tokens)
        return [str(text) for text in made]

    def answers(self, asked: Sequence[Question], *, longest: int | None = None) -> list[list[int]]:
        """The answers in the order of the questions. Processes share the questions among them; each comes back with all answers."""
        size = max(1, self.loop.args.per_device_eval_batch_size)
        mine = list(asked[rank() :: world_size()])
        made: list[list[int]] = []
        with _answering(self.loop):
            for at in range(0, len(mine), size):
                made += self._batch(mine[at : at + size], longest)
                if at and at // size % 20 == 0:
                    log.info("answered %d of %d questions", len(made), len(mine))
        return _gathered(made, len(asked))

    def _batch(self, rows: Sequence[Question], longest: int | None) -> list[list[int]]:
        import torch

        model = self.loop.accelerator.unwrap_model(self.loop.model)
        width = max(len(row.ids) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows])
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
        beams = self.config.training.arguments.get("generation_num_beams")
        ends = end_tokens(self.config, self.tokenizer, model)
        options = arguments(self.config.generation, self.tokenizer, ends, beams)
        if longest is not None:
            options["max_new_tokens"] = max(1, min(options["max_new_tokens"], longest - width))
        place = self.loop.args.device
        with torch.inference_mode(), self.loop.compute_loss_context_manager():
            try:
                made = model.generate(input_ids=ids.to(place), attention_mask=mask.to(place), **options)
            except RuntimeError as error:
                if "probability tensor contains" not in str(error):
                    raise
                raise TrainingError("the chances of the next token are NaN while answers are generated", "look at the model: weights that "
                                    "are NaN, or values that its number format cannot hold") from error  # fmt: skip
        return [_ended(row, ends) for row in made[:, width:].tolist()]


def _ended(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Without what stands behind the end: the filling of a batch."""
    last = next((at for at, token in enumerate(ids) if token in ends), None)
    return ids if last is None else ids[: last + 1]


@contextlib.contextmanager
def _answering(loop: Any) -> Iterator[None]:
    """The model answers, always with the same dice, and training goes on as if it had not been asked."""
    import torch

    device = loop.args.device
    devices = [] if device.type == "cpu" else [device]
    kind = {} if device.type == "cpu" else {"device_type": device.type}
    model = loop.accelerator.unwrap_model(loop.model)
    model.to(device)
    was_training = model.training
    with torch.random.fork_rng(devices=devices, **kind):
        torch.manual_seed(loop.args.seed + rank())
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def _gathered(made: list[list[int]], count: int) -> list[list[int]]:
    if world_size() == 1:
        return made
    import torch

    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, made)
    return [parts[at % world_size()][at // world_size()] for at in range(count)]


def run(judge: Judge, folder: Path, events: Any) -> dict[str, Any]:
    """do_predict: every held row is answered; generated_predictions.jsonl and predict_results.json are written."""
    start = time.monotonic()
    asked = [question for key in judge.items for question in judge.asked(key)]
    if not asked:
        raise InputError("do_predict is set, but there are no rows to predict on", "`eval_dataset:` or `val_size:` in the recipe")
    log.info("answering %d questions", len(asked))
    answers = judge.texts(judge.answers(asked))
    wanted = judge.texts([one.wanted for one in asked])
    seconds = time.monotonic() - start
    size = max(1, judge.loop.args.per_device_eval_batch_size) * world_size()
    found: dict[str, Any] = {f"predict_{name}": value for name, value in metrics.similarity(zip(answers, wanted, strict=True)).items()}
    found |= {"predict_runtime": round(seconds, 4), "predict_samples_per_second": round(len(asked) / seconds, 3),
              "predict_steps_per_second": round(-(-len(asked) // size) / seconds, 3)}  # fmt: skip
    if rank() == 0:
        prompts = judge.tokenizer.batch_decode([one.ids for one in asked], skip_special_tokens=False)
        _write(folder / FILE, zip(prompts, answers, wanted, strict=True))
        artefacts.write_results(folder, "predict", found)
    empty = sum(not answer.strip() for answer in answers)
    if empty:
        events.warn("predictions", f"{empty} of {len(answers)} answers are empty", count=empty)
    events.emit("predict", rows=len(asked), **found)
    log.info("predictions: %s", ", ".join(f"{name} {found[f'predict_{name}']:.2f}" for name in metrics.NAMES))
    return found


def _write(path: Path, rows: Any) -> None:
    """Complete or absent."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for prompt, answer, wanted in rows:
                file.write(json.dumps({"prompt": prompt, "predict": answer, "label": wanted}, ensure_ascii=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}", "free space, or another output_dir") from error
