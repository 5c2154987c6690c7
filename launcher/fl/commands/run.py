"""`fl run`: recipe → hardware → stack → plan → run."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fl import ui

if TYPE_CHECKING:
    from fl.decide import Decision
    from fl.progress import View

LANES = ("auto", "cuda", "rocm", "ascend", "xpu", "cpu")
_HANG = 11
ENGINES = ("auto", "docker", "podman", "apptainer", "host")


@click.command()
@click.option("--hw", type=click.Choice(LANES), help="Lane; auto takes the one whose accelerator is here.")
@click.option("--engine", type=click.Choice(ENGINES), help="What runs it; auto: docker, podman, apptainer, host, whichever can.")
@click.option("--python", type=click.Path(path_type=Path), metavar="PATH", help="Use this interpreter as it is (host engine).")
@click.option("--stack", metavar="ID", help="Row of the matrix; the best that fits otherwise.")
@click.option("--image", metavar="REF", help="Image to use instead of the stack's own.")
@click.option("--devices", metavar="D", help="Indices, UUIDs or PCI addresses, `free`, or `count:N`.")
@click.option("--dry-run", is_flag=True, help="Print the plan; start and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="The plan (dry run) or the evidence as JSON.")
@click.option("--print-command", is_flag=True, help="Print the command that would be executed, quoted for a shell.")
@click.option("--strict", is_flag=True, help="Refuse every adaptation that changes the numbers.")
@click.option("--force", is_flag=True, help="Start although the memory estimate says no.")
@click.option("--trust", is_flag=True, help="Let a model's own code run on this machine without a container.")
@click.option("--detach", is_flag=True, help="Start in the background; follow with `fl logs -f`.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def run(
    hw: str | None, engine: str | None, python: Path | None, stack: str | None, image: str | None, devices: str | None, dry_run: bool,
    as_json: bool, print_command: bool, strict: bool, force: bool, trust: bool, detach: bool, recipe: str, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Train what RECIPE says on this machine.

    RECIPE is a YAML file in LLaMA-Factory's language, or the name of a shipped one: `fl run quickstart`.
    """
    from fl.decide import Options, decide
    from fl.errors import FlError

    replay = replayed(dry_run or print_command)
    options = Options(
        hw=hw, engine=engine, python=python.absolute() if python else None, stack=stack, image=image, devices=devices,
        strict=strict, force=force, trust=trust, replay=replay,
    )  # fmt: skip
    try:
        decision = decide(recipe, overrides, options)
    except FlError as error:
        if not (dry_run or print_command):
            from fl import launch

            launch.refuse(error)
        raise
    if print_command:
        ui.out(shlex.join(decision.plan.argv))
    elif dry_run and as_json:
        ui.document(decision.plan.to_json())
    elif dry_run:
        show(decision)
        ui.out("\ndry run: nothing was started or written")
    else:
        start(decision, as_json, detach)


def replayed(dry: bool) -> Path | None:
    """The record that FL_REPLAY names. UsageError where something is to be started: a record is no machine."""
    from fl.errors import UsageError
    from fl.host import environment_replay

    replay = environment_replay(os.environ)
    if replay is not None and not dry:
        raise UsageError(f"FL_REPLAY={replay} is a recorded machine, on which nothing can be started", "add --dry-run, or unset FL_REPLAY")
    return replay


def start(decision: Decision, as_json: bool, detach: bool) -> None:
    """Carries a decision out, in the foreground or detached."""
    from fl import launch
    from fl.progress import View

    if not as_json:
        show(decision)
        ui.out()
    if detach:
        launch.preflight(decision)
        if not launch.detach(decision):
            ui.document({"run": decision.plan.run}) if as_json else ui.out(f"started {decision.plan.run}\n  fl logs -f {decision.plan.run}")
            return
    with View(quiet=as_json) as view:
        record = launch.execute(decision, view)
    if as_json:
        ui.document(record)
    else:
        finish(decision, view)


def _processes(count: int) -> str:
    return f", {count} processes" if count > 1 else ""


def show(decision: Decision) -> None:
    """The plan on the screen: what was found, what was chosen and why, what will be done differently."""
    from fl.hardware import names

    plan, cpu = decision.plan, decision.hardware.cpu
    lines = [
        (
            "hardware",
            names(decision.chosen) if decision.chosen else f"{cpu.model or 'CPU'}, {cpu.cores} cores, {(cpu.memory_mib or 0) // 1024} GiB",
        ),
        ("lane", plan.lane + (f", devices {', '.join(map(str, plan.accelerators))}" if plan.accelerators else _processes(plan.per_node))),
        ("stack", f"{plan.stack} ({decision.stack.status})"),
        ("engine", plan.engine + _engine_detail(decision)),
        ("model", f"{decision.config.model.name}, {decision.config.method.stage}, {decision.config.method.finetuning_type}"),
        ("data", ", ".join(d.name for d in decision.config.data.train) or "none"),
        *([("extras", ", ".join(f"{extra.name} ({', '.join(extra.packages)})" for extra in plan.extras))] if plan.extras else []),
        ("output", decision.config.training.output_dir),
        ("run", plan.run),
    ]
    for name, text in lines:
        ui.out(ui.paint(f"{name:>9}", "bold") + f"  {ui.clean(text)}", hang=_HANG)
    for reason in plan.reasons:
        if not reason.chosen and reason.why.startswith("is for the "):
            continue  # a row of another lane: in the JSON, not on the screen
        other = reason.why.startswith("engine ") and not reason.why.startswith(f"engine {plan.engine}:")
        mark = "✓" if reason.chosen and not other else "✗"
        ui.out(ui.paint(f"{'why':>9}", "dim") + f"  {mark} {ui.clean(reason.stack)}: {ui.clean(reason.why)}", hang=_HANG + 2)
    for change in plan.adaptations:
        ui.out(
            ui.paint(f"{'adapted':>9}", "yellow")
            + ui.clean(f"  {change.key}: {change.before} → {change.after} ({change.reason}; effect: {change.effect})"),
            hang=_HANG + 2,
        )
    for text in plan.warnings:
        ui.out(ui.paint(f"{'warning':>9}", "yellow") + f"  {ui.clean(text)}", hang=_HANG)
    for problem in plan.problems:
        style = "red" if problem.severity == "error" else "yellow"
        ui.out(ui.paint(f"{problem.severity:>9}", style) + f"  {ui.clean(problem.message)}", hang=_HANG)
    ui.out(ui.paint(f"{'command':>9}", "dim") + "  " + ui.clean(_short(plan.argv)), hang=_HANG)


def _engine_detail(decision: Decision) -> str:
    plan = decision.plan
    if plan.image.reference:
        source = "not looked for" if plan.image.source == "none" else plan.image.source
        return f", image {plan.image.reference} ({source})"
    return f", {plan.argv[0]}"


def _short(argv: tuple[str, ...], most: int = 110) -> str:
    text = shlex.join(argv)
    return text if len(text) <= most else text[:most].rpartition(" ")[0] + " … (--print-command shows all of it)"


def finish(decision: Decision, view: View) -> None:
    """What came out, and what to type next."""
    output = Path(decision.config.training.output_dir)
    ui.out()
    name, values = ("reward", view.rewards) if view.rewards else ("loss", view.losses)  # of samples the loss says nothing
    if values:
        last = values[-max(1, len(values) // 10) :]  # one batch's says little
        of = f" (mean of the last {len(last)} logged)" if len(last) > 1 else ""
        ui.out(ui.paint(f"{name} {values[0]:.4f} → {sum(last) / len(last):.4f}{of}", "green"))
    rows = _comparison(output)
    if rows:
        from fl.progress import comparison

        comparison(rows)
    adapter = decision.config.method.finetuning_type in ("lora", "oft")
    ui.out(f"\n{'adapter' if adapter else 'model':<8}  {output}")
    if (output / "training_loss.png").is_file():
        ui.out(f"curve     {output / 'training_loss.png'}")
    ui.out(f"evidence  {decision.folder / 'evidence.json'}")
    name = decision.recipe.name if decision.recipe.shipped else decision.recipe.path
    ui.out("\nnext")
    for command, about in (
        (f"fl recipe show {shlex.quote(name)}", "every key of what was trained"),
        ("fl recipe list", "other recipes that came with fl"),
        ("fl run RECIPE.yaml", "your own: LLaMA-Factory's YAML runs as it is"),
        (f"fl logs {decision.plan.run}", "the trainer's log"),
    ):
        ui.out(f"  {command:<44}  {about}")


def _comparison(output: Path) -> list[dict[str, str]]:
    try:
        rows = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return rows if isinstance(rows, list) else []
