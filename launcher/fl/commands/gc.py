"""`fl gc`: the disk that fl takes and nothing needs."""

from __future__ import annotations

import click

from fl import ui


@click.command(short_help="Remove caches that nothing needs.")
@click.option("--dry-run", is_flag=True, help="Only list them.")
@click.option("--days", default=30.0, show_default=True, type=click.FloatRange(min=0), help="Only what no run has used for so long.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def gc(dry_run: bool, days: float, as_json: bool) -> None:
    """Remove environments, code, models, compilers' caches and images that belong to no lock, row or version of this fl.

    What a run that goes on uses stays, and so does what this fl would make again at once. Runs, evidence, outputs and the hub's cache
    are never touched.
    """
    from fl import gc as collecting
    from fl.matrix import load

    found = collecting.find(load(), collecting.all_use(), days)
    gone = found if dry_run else collecting.remove(found)
    total = sum(one.size for one in gone)
    if as_json:
        ui.document({"schema": 1, "dry_run": dry_run, "bytes": total, "removed": [one.to_json() for one in gone]})
        return
    if gone:
        ui.table(("WHAT", "SIZE", "WHERE", "WHY"), [(o.kind, collecting.size_text(o.size), str(o.path), o.why) for o in gone])
    kept = len(found) - len(gone)
    ui.say(f"{collecting.size_text(total)} {'can be freed: fl gc' if dry_run else 'freed'}" if gone else "nothing to remove")
    if kept:
        ui.warning(f"{kept} images are in use by containers: docker ps -a")
