"""`fl env`: what a bug report needs."""

from __future__ import annotations

import click

from fl import ui


@click.command(short_help="Print what a bug report needs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def env(as_json: bool) -> None:
    """Print versions, hardware, engines, settings and caches. No secrets, no host name; the home folder stands as ~."""
    from fl import report

    document = report.gather()
    if as_json:
        ui.document(document)
        return
    for section, value in document.items():
        if isinstance(value, dict):
            ui.out(ui.paint(section, "bold"))
            for name, text in value.items():
                ui.out(f"  {ui.clean(name)}: {ui.clean(report.text(text))}", hang=4)
        else:
            ui.out(ui.paint(section, "bold") + f" {ui.clean(report.text(value))}")
