"""What the pages in stages/ share: one object that holds the run, and the steps that are the same for every stage."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_trainers import adapters, artefacts, checkpoints, compare, metrics, model, optimizers, origin, pissa, predict, record
from fl_trainers.config import Config
from fl_trainers.data import pipeline, tokens
from fl_trainers.data.collator import Collator
from fl_trainers.data.encode import IGNORE
from fl_trainers.data.formats import Report
from fl_trainers.data.ranking import Both
from fl_trainers.device import Device
from fl_trainers.errors import InputError, Stopped, TrainingError
from fl_trainers.progress import Events, log, rank, world_size
from fl_trainers.stop import stop

LIGER = {"rope": True, "swiglu": True, "rms_norm": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
"""Of Liger's kernels what the fast steps have not themselves."""


@dataclass
class Session:
    """One run inside this process."""

    config: Config
    events: Events
    device: Device
    folder: Path
    resume: str | None = None
    arguments: Any = None
    tokenizer: Any = None
    model: Any = None
    facts: dict[str, Any] | None = None
    origin: Callable[[], dict[str, Any]] = dict
    """What the run is made of, for its checkpoints; asked when the first is written."""
    keep_base: Callable[[], None] | None = None
    """Writes a built-in model's weights as they were."""
    counts: tuple[int, int] = (0, 0)
    items: tuple[list[pipeline.Item], dict[str, list[pipeline.Item]]] = ([], {})
    report: Report = field(default_factory=Report)
    prepared: pipeline.Prepared | None = None
    before: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    follow: Any = None
    judge: predict.Judge | None = None

    @property
    def adapter(self) -> bool:
        """Whether all that is learned stands beside the model, which then still answers as before."""
        return pissa.beside(self.model)


def read_rows(session: Session) -> None:
    """Rows first: their faults are found in a second, and the built-in models make their tokenizer from them."""
    config = session.config
    if tokens.is_there(config) and config.model.kind != "tiny" and not config.training.predict_with_generate:
        return
    session.items = pipeline.items_of(config, session.report)


def open_model(session: Session) -> None:
    """Tokenizer and weights, frozen and wrapped as the recipe says."""
    config = session.config
    start = time.monotonic()
    adapters.check(config)
    optimizers.check(config)
    predict.check(config)
    source = model.folder_of(config)
    rows = session.items[0] or [item for held in session.items[1].values() for item in held]
    session.tokenizer = model.load_tokenizer(config, source, pipeline.texts(rows), session.events)
    plain, digest = model.load_model(config, source, session.tokenizer, session.device)
    made_of = functools.cache(lambda: origin.of(config, source, session.tokenizer))
    rows_of = functools.cache(lambda: {"data": origin.data_of(config, session.prepared.train if session.prepared else [])})
    session.origin = lambda: {**made_of(), **(rows_of() if session.prepared else {})}
    if session.resume and config.training.do_train:
        origin.must_match(Path(session.resume), session.origin(), config, session.events)
    if config.model.kind == "tiny" and config.method.finetuning_type in ("lora", "oft") and config.training.do_train:
        _name_base(session, plain)
    for stranger in adapters.strangers(config):
        session.events.warn("adapter", stranger)
    whole, _ = adapters.count(plain)
    session.model = adapters.apply(config, plain)
    if pissa.begins(config) and not pissa.converts(config):
        session.events.warn("pissa", pissa.WARNING)
    session.counts = (whole, adapters.count(session.model)[1])
    session.facts = record.model_facts(config, plain, session.counts, digest)
    session.events.emit(
        "model", **session.facts, device=session.device.name, reasons=session.device.reasons, seconds=round(time.monotonic() - start, 2)
    )
    log.info("model %s: %s parameters, %s trained, %s on %s", config.model.name, f"{session.counts[0]:,}", f"{session.counts[1]:,}",
             session.facts["dtype"], session.device.name)  # fmt: skip


def _name_base(session: Session, plain: Any) -> None:
    """A built-in tiny model is in no hub: its adapter is of use only with the base beside it, which is written when training begins."""
    base, whole = session.folder / "base-model", copy.deepcopy(plain)
    plain.name_or_path = plain.config._name_or_path = str(base)
    session.keep_base = lambda: whole.save_pretrained(base)


def _keep_beginning(session: Session) -> None:
    """What an adapter begins with, written once nothing can refuse the run any more."""
    if session.keep_base is not None and rank() == 0:
        session.keep_base()
        session.keep_base = None
    if pissa.converts(session.config):
        pissa.keep_initial(session.model, session.folder)


def tokenize(session: Session) -> pipeline.Prepared:
    """Rows of token ids; the first one is shown as text, with the part that counts."""
    start = time.monotonic()
    config = session.config
    kept = tokens.load(config, session.tokenizer, session.events)
    prepared = kept or pipeline.prepare(config, session.tokenizer, *session.items, session.report, session.events)
    session.prepared = prepared
    if kept is not None:
        pipeline.tell(kept.report, session.events)
    elif config.data.tokenized_path and rank() == 0:
        tokens.save(config, session.tokenizer, prepared)
    if session.resume and config.training.do_train:
        origin.note_changes(Path(session.resume), session.origin(), session.events)
    held = sum(len(rows) for rows in prepared.eval.values())
    known: dict[str, Any] = {}
    if not config.data.streaming:
        known = {"rows": prepared.rows, "sequences": len(prepared.train), "tokens": prepared.tokens}
    session.events.emit("data", **known, eval_rows=held, streaming=config.data.streaming, dropped_or_cut=prepared.report.counts,
                        seconds=round(time.monotonic() - start, 2))  # fmt: skip
    log.info("data: %s, %d rows for evaluation", ", ".join(f"{count} {name}" for name, count in known.items()) or "a stream", held)
    log.info("first sequence: %r\n  of it the loss counts: %r", prepared.preview[0][:600], prepared.preview[1][:600])
    return prepared


def build_loop(session: Session, kind: Any = None, *, apart: bool = False, **more: Any) -> Any:
    """The Trainer for these rows. kind: a Loop whose batches hold two answers a row."""
    from transformers import EarlyStoppingCallback, PrinterCallback

    from fl_trainers.loop import Loop
    from fl_trainers.watch import Watch

    prepared = session.prepared
    if prepared is None:
        raise AssertionError("rows are tokenized before the loop is built")
    if str(session.arguments.eval_strategy.value) != "no" and not prepared.eval:
        raise InputError("eval_strategy is set, but there are no rows to evaluate on", "`val_size:` or `eval_dataset:` in the recipe")
    session.follow = Watch(session.events, session.device, session.folder, session.origin)
    pad = session.tokenizer.pad_token_id
    filler = IGNORE if session.config.data.ignore_pad_token_for_loss else pad
    multiple = 1 if session.device.type == "cpu" else 8
    held: Any = next(iter(prepared.eval.values())) if len(prepared.eval) == 1 else (prepared.eval or None)
    batches = Collator(pad, multiple, apart, filler) if kind is None else Both(pad, multiple)
    loop = (kind or Loop)(
        config=session.config, device=session.device, fast=_fast(session), model=session.model, args=session.arguments,
        train_dataset=prepared.train or None, eval_dataset=held, processing_class=session.tokenizer,
        data_collator=batches, callbacks=[session.follow], **more,
    )  # fmt: skip
    loop.remove_callback(PrinterCallback)
    if session.config.method.early_stopping_steps is not None:
        loop.add_callback(EarlyStoppingCallback(early_stopping_patience=session.config.method.early_stopping_steps))
    session.follow.loop = loop
    if session.config.training.predict_with_generate:
        session.judge = predict.Judge(session.config, session.tokenizer, session.items[1], loop=loop)
        loop.judge = session.judge if session.config.training.do_eval else None
    return loop


def _fast(session: Session) -> Any:
    """How steps are computed; layers that need not be recomputed are not. Said in the log and the events."""
    from fl_trainers.fast import choice, load

    made = choice.choose(session.config, session.model.config, load.machine_of(session.device, session.model), load.load_of(session))
    if session.config.model.gradient_checkpointing and not made.recompute:
        session.model.gradient_checkpointing_disable()
    elif made.keep:
        load.keep_last(session.model, made.keep)
    if made.liger:
        session.arguments.use_liger_kernel = True
        session.arguments.liger_kernel_config = LIGER
    session.events.emit("speed", padding_free=made.padding_free, graphs=made.graphs, recompute=made.recompute, why=made.why)
    log.info("steps: %s", made.why)
    return made


def answer_before(session: Session) -> None:
    """Asks the untrained model now, unless an adapter lets it be asked later: then the first step comes sooner."""
    if session.config.run.prompts and not session.adapter and rank() == 0 and not sharded(session):
        session.before = _ask(session)


def _ask(session: Session) -> list[str]:
    data = session.config.data
    session.model.to(session.arguments.device)
    return compare.answers(
        session.model, session.tokenizer, session.config.run.prompts, thinking=data.enable_thinking, default_system=data.default_system
    )


def mixed(session: Session) -> Any:
    """The dtype of autocast, None without it."""
    import torch

    return torch.bfloat16 if session.arguments.bf16 else torch.float16 if session.arguments.fp16 else None


def sharded(session: Session) -> bool:
    """Whether the weights may be spread over several processes."""
    return bool(session.arguments.deepspeed or session.arguments.fsdp)


def run_loop(session: Session, loop: Any) -> None:
    """Trains to the end, or to where it was asked to stop: then Stopped is raised after the checkpoint."""
    from fl_trainers.watch import must_be_numbers

    if session.resume and session.config.training.do_train and not sharded(session):
        inner = getattr(session.model, "pretrained_model", session.model)  # of a value head
        checkpoints.must_fit(Path(session.resume), session.config.method.finetuning_type, inner)
    if session.config.training.do_train:
        _keep_beginning(session)
    if not session.config.training.do_train or (session.resume and _complete(session, loop)):
        stop.deferred = True
        return
    if session.resume:
        session.events.emit("resume", path=session.resume)
    checkpoints.clear(session.config)
    with _no_casts(session), _fused(session, loop), _faults(session):
        result = loop.train(resume_from_checkpoint=session.resume)
    if session.config.data.streaming and session.prepared:
        pipeline.tell(session.prepared.report, session.events)
    loop.check()
    must_be_numbers(loop.model, loop.state.global_step)
    if stop.requested and loop.state.global_step < loop.state.max_steps:
        raise Stopped(
            f"stopped at step {loop.state.global_step} of {loop.state.max_steps}; checkpoint-{loop.state.global_step} goes on from there"
        )
    session.metrics = {"epoch": loop.state.epoch, **{key: value for key, value in result.metrics.items() if key != "epoch"}}
    runtime = result.metrics.get("train_runtime") or 0.0
    tokens = _of_all(loop, loop.tokens_seen)
    if runtime:
        session.metrics["tokens_per_second"] = round(tokens / runtime, 1)
        session.metrics["effective_tokens_per_sec"] = round(tokens / world_size() / runtime, 1)  # LLaMA-Factory's: of one process


def _of_all(loop: Any, count: int) -> int:
    """The sum over all processes, whose rows are of other lengths."""
    import torch

    return int(loop.accelerator.gather(torch.tensor([count], device=loop.args.device)).sum())


def _faults(session: Session) -> Any:
    """Faults of rows that come while training goes on."""
    if not session.config.data.streaming:
        return contextlib.nullcontext()
    from fl_trainers.data.streaming import faults_of_workers

    return faults_of_workers()


def _no_casts(session: Session) -> Any:
    """Under autocast peft's own casting of an adapter's inputs to float32 is undone at once: the same numbers, and a third of the time."""
    if session.config.method.finetuning_type != "lora" or not (session.arguments.bf16 or session.arguments.fp16):
        return contextlib.nullcontext()
    if session.arguments.deepspeed:  # which has no autocast: with ZeRO-3 adapters are float32 beside weights in 16 bits
        return contextlib.nullcontext()
    from peft.helpers import disable_input_dtype_casting

    return disable_input_dtype_casting(session.model)


def _fused(session: Session, loop: Any) -> Any:
    """Layers that compute in one function while training lasts; generation and saving see them as they are."""
    stack = contextlib.ExitStack()
    if loop.fast.padding_free:
        from fl_trainers.fast import load, lora, masters, norms

        left = session.config.training.speed_without
        if session.adapter and "lora" not in left:
            stack.enter_context(lora.fused(session.model, loop.masters))
        if not session.adapter and load.keeps_copies(loop):
            stack.enter_context(masters.fused(session.model, loop.masters))
        if session.device.type == "cuda" and "norms" not in left:
            stack.enter_context(norms.fused(session.model, compiled=loop.fast.liger))
    return stack


def _complete(session: Session, loop: Any) -> bool:
    """Whether the checkpoint is the last step already: its weights are taken. (The Trainer would do one step more.)"""
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(Path(str(session.resume)) / "trainer_state.json"))
    last = loop.set_initial_training_values(loop.args, loop.get_train_dataloader())[-1]
    if state.global_step < last:
        return False
    if session.arguments.deepspeed:  # only its engine reads, and writes, what is spread
        loop._prepare_for_training(last, loop.get_train_dataloader(), session.resume)
    else:
        loop._load_from_checkpoint(session.resume)
    loop.state.global_step, loop.state.max_steps = state.global_step, last
    loop.state.epoch, loop.state.log_history = state.epoch, state.log_history
    session.follow.losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    results = session.folder / "train_results.json"
    session.metrics = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {"epoch": state.epoch}
    session.events.warn("complete", f"checkpoint-{state.global_step} is step {state.global_step} of {last}: nothing is left to train "
                        "(`overwrite_output_dir: true` starts anew)")  # fmt: skip
    return True


def save_all(session: Session, loop: Any) -> None:
    """Weights, tokenizer, results, picture, card and comparison. Every rank calls it; rank 0 writes."""
    from fl_trainers.watch import no_numbers

    config, folder = session.config, session.folder
    session.events.emit("saving", path=str(folder))
    if config.training.do_train:
        loop.save_model(str(folder))
    held = loop.evaluate() if session.prepared and session.prepared.eval else {}
    if not config.training.do_train and (bad := no_numbers(held)):
        raise TrainingError(f"the {bad[0].replace('_', ' ')} is no number", "look at the model: weights that are NaN, or values that its "
                            "number format cannot hold (bf16 in place of fp16, or neither)")  # fmt: skip
    if rank() == 0:
        if config.training.do_train:
            loop.state.save_to_json(str(folder / "trainer_state.json"))
            artefacts.write_results(folder, "train", session.metrics)
        if held:
            artefacts.write_results(
                folder, "eval", {key: value for key, value in held.items() if key != "epoch"} | {"epoch": loop.state.epoch}
            )
        if config.training.plot_loss and config.training.do_train:
            _draw(session, loop)
        card = artefacts.model_card(
            config, {**session.metrics, **held}, parameters=session.counts[0], trained=session.counts[1],
            rows=(session.prepared.rows or session.prepared.report.read) if session.prepared else 0, losses=session.follow.losses,
        )  # fmt: skip
        (folder / "README.md").write_text(card, encoding="utf-8")
        _compare(session)
        if pissa.converts(config) and config.training.do_train:
            pissa.convert(session.model, session.folder)
        for saved in (folder, folder / "base-model", folder / pissa.CONVERTED):
            artefacts.share(saved)
    if session.judge is not None:
        predicted = predict.run(session.judge, folder, session.events) if config.training.do_predict else {}
        pipeline.tell(session.judge.report, session.events)
        session.metrics |= {key: value for key, value in predicted.items() if key.removeprefix("predict_") in metrics.NAMES}
    session.metrics |= {key: value for key, value in held.items() if key == "eval_loss"}


def _draw(session: Session, loop: Any) -> None:
    os.environ.setdefault("MPLCONFIGDIR", str(Path(session.config.run.events).parent / ".matplotlib"))
    from fl_trainers import plot

    method = session.config.method
    plot.draw(
        loop.state.log_history,
        session.folder / "training_loss.png",
        f"{session.config.model.name}, {method.stage}, {method.finetuning_type}",
    )


def _compare(session: Session) -> None:
    prompts = session.config.run.prompts
    if not prompts:
        return
    if sharded(session):
        session.events.warn("comparison", "the answers before and after are left out: the model is spread over several devices")
        return
    if session.adapter:
        with compare.without_adapter(session.model):
            session.before = _ask(session)
    after = _ask(session)
    pairs = [{"prompt": p, "before": b, "after": a} for p, b, a in zip(prompts, session.before, after, strict=True)]
    artefacts.write_json(session.folder / "comparison.json", pairs)
    session.events.emit("comparison", answers=pairs)
