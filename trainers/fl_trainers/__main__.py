"""`python -m fl_trainers config.json`: trains what the config says, and exits with a code that says how it went."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fl_trainers import lean, ranks, sharding, trackers
from fl_trainers.config import Config
from fl_trainers.errors import InputError, Stopped, TrainerError, TrainingError
from fl_trainers.progress import Events, log, start_log, world_size
from fl_trainers.stop import stop

STAGES = ("pt", "sft", "rm", "dpo", "orpo", "simpo", "kto", "ppo", "grpo")


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 done, 3 no device, 5 input, 10 the training failed, 143 stopped."""
    take_secrets(os.environ)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin without end make a busy machine crawl ...
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # ... and sleeping at once costs a quarter of the speed: some microseconds are best
    start_log()
    stop.install()
    if len(arguments) != 1:
        log.error("usage: python -m fl_trainers config.json")
        return 2
    try:
        config = Config.read(Path(arguments[0]))
    except (OSError, ValidationError) as error:
        log.error("error: %s: %s", arguments[0], error)
        return InputError.exit_code
    limit_threads(config, os.environ)
    sharding.join_alone(config, os.environ)
    events = Events(Path(config.run.events))
    ended = _Run(config, events)
    try:
        ended.go()
    except TrainerError as error:
        return ended.failed(type(error).__name__, error.message, error.exit_code, error.remedy)
    except KeyboardInterrupt:
        return ended.failed("Stopped", "interrupted", Stopped.exit_code)
    except Exception as error:  # noqa: BLE001 - whatever it was, the run's record must say so
        return _crash(ended, error)
    return 0


def limit_threads(config: Config, environ: MutableMapping[str, str]) -> None:
    """preprocessing_num_workers: the tokenizer works in threads of one process, whose number is read when it is imported."""
    wanted = config.data.preprocessing_num_workers
    if wanted is not None:
        environ.setdefault("RAYON_NUM_THREADS", str(min(wanted, os.cpu_count() or wanted)))


def take_secrets(environ: MutableMapping[str, str]) -> None:
    """Tokens come as a file that FL_SECRETS names, so that no inspection of the container shows them."""
    name = environ.pop("FL_SECRETS", None)
    if name:
        environ.update(json.loads(Path(name).read_text(encoding="utf-8")))


def _crash(ended: _Run, error: Exception) -> int:
    """Out of memory and a full disk have causes the user can remove; anything else is a crash of the training."""
    from fl_trainers import checkpoints, output

    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower():
        hint = "a smaller per_device_train_batch_size or cutoff_len, quantization_bit: 4, or more devices with deepspeed"
        return ended.failed("OutOfMemory", f"out of memory: {'. '.join(first.split('. ')[:3])}", TrainingError.exit_code, hint)
    unwritten = output.fault(error, ended.config)
    if unwritten is not None:
        checkpoints.drop_unfinished(ended.config, ended.saved_before)
        return ended.failed("Output", unwritten.message, InputError.exit_code, unwritten.remedy)
    if ranks.lost(error):
        return ended.failed(ranks.LOST, ranks.said(first), TrainingError.exit_code)
    traceback.print_exc()
    return ended.failed(type(error).__name__, f"the training crashed: {type(error).__name__}: {first}", TrainingError.exit_code)


class _Run:
    """One run from start to end; keeps what the record needs when it ends early."""

    def __init__(self, config: Config, events: Events) -> None:
        self.config, self.events = config, events
        self.device: Any = None
        self.session: Any = None
        self.started = time.monotonic()
        self.saved_before: set[str] = set()
        """Checkpoints that stood in the output folder when this run began."""

    def go(self) -> None:
        config, events = self.config, self.events
        stage = config.method.stage
        if stage not in STAGES:
            raise InputError(f"stage {stage} is not known to this trainer", f"it has {', '.join(STAGES)}")
        _refuse_unknown(config)
        events.emit("start", run=config.run.name, stage=stage, finetuning_type=config.method.finetuning_type, lane=config.run.lane,
                    stack=config.run.stack, processes=world_size(), pid=os.getpid(), output_dir=config.training.output_dir)  # fmt: skip
        from fl_trainers import checkpoints, output

        config = self.config = sharding.without_offload(sharding.without_training(config, events), events)
        folder = checkpoints.prepare_output(config)
        output.hold(config)
        resume = checkpoints.resume_from(config, events)
        output.refuse_model(config, resume)
        self.saved_before = {path.name for path in checkpoints.checkpoints(folder)}
        lean.hide(config)
        sharding.without_compiler(config)
        sharding.free_memory_by_torch(config, os.environ)
        if config.training.arguments.get("deepspeed"):
            sharding.forget_dead_builds(os.environ)
        from fl_trainers import device

        self.device = device.choose(config)
        _quiet()
        from fl_trainers.loop import arguments_of
        from fl_trainers.session import Session

        self.session = Session(config, events, self.device, folder, resume, arguments_of(config, self.device))
        from transformers import set_seed

        set_seed(self.session.arguments.seed)
        page = importlib.import_module(f"fl_trainers.stages.{stage}")
        page.load(self.session)
        page.data(self.session)
        loop = page.trainer(self.session)
        page.train(self.session, loop)
        page.save(self.session, loop)
        self._record("passed", None)
        events.emit("end", outcome="passed", seconds=round(time.monotonic() - self.started, 2), metrics=self.session.metrics)
        log.info("done: %s", folder)

    def failed(self, kind: str, message: str, exit_code: int, remedy: str = "") -> int:
        """Tells the error, writes the record, returns the exit code. What another process failed of is why this one ends too."""
        cause = ranks.cause(self.events.path) if world_size() > 1 and kind in (Stopped.__name__, ranks.LOST) else None
        if cause is not None:
            kind, message, exit_code = str(cause["type"]), str(cause["message"]), int(cause["exit"])
        outcome = "stopped" if exit_code == Stopped.exit_code else "failed"
        if cause is not None:
            log.error("another process has failed: %s", message)
        elif outcome == "failed":
            self.events.error(kind, message, exit_code, remedy)
        else:
            log.info("%s", message)
        try:
            self._record(outcome, {"type": kind, "message": message})
        except TrainerError as error:  # the disk is full: the events have the reason already
            log.error("error: %s", error.message)
        self.events.emit("end", outcome=outcome, exit=exit_code, message=message, seconds=round(time.monotonic() - self.started, 2))
        return exit_code

    def _record(self, outcome: str, failure: dict[str, str] | None) -> None:
        from fl_trainers import record

        session = self.session
        follow = session.follow if session else None
        metrics: dict[str, Any] = {"loss": follow.losses if follow else [], "tokens_per_second": None}
        if follow and follow.rewards:
            metrics["reward"] = follow.rewards
        if session is not None:
            rates = sorted(follow.rates) if follow else []
            metrics["tokens_per_second"] = session.metrics.get("tokens_per_second") or (round(rates[len(rates) // 2], 1) if rates else None)
            metrics |= {key: value for key, value in session.metrics.items() if key in ("eval_loss", "train_loss", "train_runtime")}
        record.write(self.config, self.device, outcome=outcome, model=session.facts if session else None, metrics=metrics, failure=failure)


def _refuse_unknown(config: Config) -> None:
    """Keys of the config that other stages and later versions use; silence would be worse than refusal."""
    asked = {"streaming": config.data.streaming, "tokenized_path": config.data.tokenized_path is not None}
    wanted = [key for key, value in asked.items() if value]
    if wanted and config.method.stage in ("grpo", "ppo"):
        raise InputError(f"stage {config.method.stage} cannot do {', '.join(wanted)}", "leave them out of the recipe")
    if len(wanted) == 2:
        raise InputError("tokenized_path keeps all rows, and streaming never has them all", "one of the two")
    if config.data.streaming and int(config.training.arguments.get("max_steps") or 0) < 1:
        raise InputError("streaming: nobody knows how long an epoch is", "`max_steps:` in the recipe")
    _refuse_unnamed(config)
    if config.data.neat_packing and config.method.stage == "pt":
        raise InputError("neat_packing is for stage sft: blocks of stage pt have no parts", "leave neat_packing out")


def _refuse_unnamed(config: Config) -> None:
    """Where each data set has a loss, or a reward, of its own, what goes by one must be told by which."""
    given = config.training.arguments
    asked = {
        "early_stopping_steps": config.method.early_stopping_steps is not None,
        "load_best_model_at_end": given.get("load_best_model_at_end"),
        "save_strategy: best": given.get("save_strategy") == "best",
        "lr_scheduler_type: reduce_lr_on_plateau": given.get("lr_scheduler_type") == "reduce_lr_on_plateau",
    }  # fmt: skip
    keys, sets = [key for key, value in asked.items() if value], [dataset.name for dataset in config.data.eval]
    figure = "reward" if config.method.stage in ("ppo", "grpo") else "loss"
    common = given.get("metric_for_best_model", figure) in (figure, f"eval_{figure}")
    if keys and config.data.eval_on_each_dataset and len(sets) > 1 and common:
        raise InputError(f"{keys[0]} goes by one {figure}, and eval_on_each_dataset gives {len(sets)}",
                         f"`metric_for_best_model: eval_{sets[0]}_{figure}`")  # fmt: skip


def _quiet() -> None:
    """Progress bars and chatter of the libraries: the log has its own lines."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging as chatter

    chatter.set_verbosity_warning()
    chatter.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.WARNING)


def finish(code: int) -> None:
    """Ends the process without the interpreter's own tidying, which takes a second and can hang in a collective."""
    trackers.close(code)
    if world_size() > 1 and code == 0:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    finish(main(sys.argv[1:]))
