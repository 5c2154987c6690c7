"""Everything that a recipe needs, fetched beforehand: image or environment, model and data. Afterwards the run needs no network."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Final

from fl import engines, inputs, launch, modelscope, runs, trackers
from fl.decide import Decision, Options, decide
from fl.errors import EngineError, FlError, ImageError, Interrupted, RecipeError, Terminated
from fl.plan import trainer_argv

if TYPE_CHECKING:
    from fl_trainers.config import Config

_POLL: Final = 0.1
_AGAIN: Final = "fl fetch, again: what has arrived is kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What is here now."""

    decision: Decision
    models: tuple[str, ...]
    datasets: tuple[str, ...]
    needs_network: tuple[str, ...]
    """Why the run would still ask for a network; empty: it needs none."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document of `fl fetch --json`."""
        plan = self.decision.plan
        return {
            "schema": 1, "recipe": self.decision.recipe.path, "lane": plan.lane, "stack": plan.stack, "engine": plan.engine,
            "image": plan.image.reference, "environment": plan.argv[0] if plan.engine == "host" else None, "models": list(self.models),
            "extras": [extra.name for extra in plan.extras],
            "datasets": list(self.datasets), "offline": not self.needs_network, "needs_network": list(self.needs_network),
            "seconds": round(self.seconds, 1),
        }  # fmt: skip


def fetch(source: str, overrides: Sequence[str], options: Options, report: Callable[[str], None]) -> Fetched:
    """Fetches what `fl run` with the same words would need. Raises the FlError of what cannot be had; nothing is trained.

    What is known of a model only after it is here may lead to another stack: then that stack's image or environment is fetched too.
    """
    began = time.monotonic()
    decision = decide(source, overrides, options)
    while True:
        _provide(decision, report)
        after = decide(source, overrides, options)
        if (after.stack.id, after.plan.image.reference, after.lock) == (decision.stack.id, decision.plan.image.reference, decision.lock):
            break
        decision = after
    models, datasets = names(after.config)
    return Fetched(
        decision=after, models=models, datasets=datasets, needs_network=_network(after), seconds=time.monotonic() - began
    )  # fmt: skip


def names(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(models and adapters, data sets) that come from a hub."""
    models, datasets = _names(config)
    others = modelscope.asked(config)
    models += tuple(one.name for one in others if one.kind == "models")
    return models, datasets + tuple(one.name for one in others if one.kind == "datasets")


def _names(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same of what the trainer's own libraries ask for: those of the Hugging Face hub."""
    found = dict.fromkeys(inputs.hub(config))
    datasets = {data.path for data in (*config.data.train, *config.data.eval) if data.source == "hub"}
    return tuple(name for name in found if name not in datasets), tuple(name for name in found if name in datasets)


def _network(decision: Decision) -> tuple[str, ...]:
    """Why a plan has a network although everything is here."""
    if decision.plan.engine == "host" and "HF_HUB_OFFLINE" in decision.plan.environment:
        return ()
    if decision.plan.options.get("network") == "none":
        return ()
    arguments = decision.config.training.arguments
    around = {**os.environ, **decision.plan.environment}
    reasons = [f"report_to: {name}" for name in trackers.tracked_online(decision.config, around)]
    reasons += ["push_to_hub: true"] if arguments.get("push_to_hub") else []
    reasons += [f"fl: {{network: {decision.recipe.launcher.network}}}"] if decision.recipe.launcher.network else []
    return tuple(reasons + [f"{name} is not whole in the hub's cache" for name in inputs.missing(decision.config)])


def _provide(decision: Decision, report: Callable[[str], None]) -> None:
    launch.preflight(decision)
    output = Path(decision.config.training.output_dir)
    existed = output.exists()
    run = runs.create(decision.plan.run)
    try:
        launch.write_inputs(decision, run.folder)
        with launch.caught() as signals:
            launch._provide(decision, run, report, signals)
            if any(_names(decision.config)) and "HF_HUB_OFFLINE" not in decision.plan.environment:
                _from_hub(decision, run, report, signals)
    finally:
        rmtree(run.folder, ignore_errors=True)
        if not existed:
            with suppress(OSError):  # not empty: somebody else's by now
                output.rmdir()


def _from_hub(decision: Decision, run: runs.Run, report: Callable[[str], None], signals: launch.Signals) -> None:
    """Models and data sets, by the trainer's own libraries inside the image or environment that will train."""
    config, plan = decision.config, decision.plan
    models, datasets = _names(config)
    report(f"fetching {', '.join((*models, *datasets))} from {plan.environment.get('HF_ENDPOINT', 'the hub')}")
    inputs.hub_cache().mkdir(parents=True, exist_ok=True)
    revisions = {config.model.path: config.model.revision}
    wanted = [f"{name}@{revisions[name]}" if name in revisions else name for name in models]
    program = trainer_argv("python", f"{run.folder}/config.json", plan.per_node)
    head = plan.argv[: len(plan.argv) - len(program)]
    argv = (*head, plan.argv[len(head)], "-m", "fl_trainers.fetch", f"{run.folder}/config.json", *wanted)
    started = engines.get(plan.engine).start(replace(plan, argv=argv), decision.secrets if plan.engine == "host" else {})
    started.follow(run.folder / "log.txt")
    try:
        ended = _wait(started, run, report, signals)
    finally:
        if started.poll() is None:
            started.kill()
        started.remove()
    if ended.exit_code:
        raise _failure(run.folder, ended)


def _wait(started: engines.Started, run: runs.Run, report: Callable[[str], None], signals: launch.Signals) -> engines.Ended:
    offset = 0
    while True:
        ended = started.poll()
        events, offset = runs.read_events(run.folder / "events.jsonl", offset)
        for event in events:
            if event["event"] == "fetch":
                report(_told(event))
        if ended is not None:
            return ended
        if signals.interrupts:
            raise Interrupted("the fetching was interrupted", _AGAIN)
        if signals.terminated:
            raise Terminated("the fetching was stopped", _AGAIN)
        time.sleep(_POLL)


def _told(event: dict[str, Any]) -> str:
    if event.get("kind") == "dataset":
        return f"{event.get('name')}: {event.get('rows')} rows"
    size = event.get("bytes")
    return f"{event.get('name')}: {event.get('files')} files, {size / 1e6:.0f} MB" if isinstance(size, int) else str(event.get("name"))


def _failure(folder: Path, ended: engines.Ended) -> FlError:
    told = runs.last_error(folder / "events.jsonl")
    if told is not None and ended.exit_code == RecipeError.exit_code:
        message, _, remedy = told.partition("\n")
        return RecipeError(message, remedy)
    tail = launch._tail(folder / "log.txt")
    kind = EngineError if ended.exit_code != ImageError.exit_code else ImageError
    return kind(f"the fetching ended with exit code {ended.exit_code}{f' ({ended.reason})' if ended.reason else ''}{tail}", _AGAIN)

