"""`fl fetch`: everything a recipe needs, for a site without internet."""

from __future__ import annotations

from pathlib import Path

import click

from fl import ui
from fl.commands.run import ENGINES, LANES, replayed


@click.command(short_help="Fetch what a recipe needs, for a site without internet.")
@click.option("--hw", type=click.Choice(LANES), help="Lane; auto takes the one whose accelerator is here.")
@click.option("--engine", type=click.Choice(ENGINES), help="What will run it; auto: docker, podman, apptainer, host, whichever can.")
@click.option("--python", type=click.Path(path_type=Path), metavar="PATH", help="The interpreter that will run it (host engine).")
@click.option("--stack", metavar="ID", help="Row of the matrix; the best that fits otherwise.")
@click.option("--image", metavar="REF", help="Image to use instead of the stack's own.")
@click.option("--json", "as_json", is_flag=True, help="What is here now as one JSON document.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def fetch(
    hw: str | None, engine: str | None, python: Path | None, stack: str | None, image: str | None, as_json: bool, recipe: str,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Fetch image or environment, model and data of RECIPE into the caches. `fl run` with the same words then needs no network.

    Nothing is trained. What has arrived is kept when it is interrupted.
    """
    from fl import fetch as fetching
    from fl.decide import Options

    replayed(dry=False)
    options = Options(
        hw=hw, engine=engine, python=python.absolute() if python else None, stack=stack, image=image, force=True, trust=True
    )  # fmt: skip
    done = fetching.fetch(recipe, overrides, options, ui.step)
    if as_json:
        ui.document(done.to_json())
        return
    plan = done.decision.plan
    ui.out(f"stack    {plan.stack}")
    ui.out(f"image    {plan.image.reference}" if plan.image.reference else f"python   {plan.argv[0]}")
    for extra in plan.extras:
        ui.out(f"extra    {extra.name}: {', '.join(extra.packages)}")
    for kind, found in (("model", done.models or (done.decision.config.model.name,)), ("data", done.datasets)):
        for name in found:
            ui.out(f"{kind:<8} {ui.clean(name)}")
    for reason in done.needs_network:
        ui.warning(f"the run still needs a network: {reason}")
    if not done.needs_network:
        ui.out("everything is here: the run needs no network")
