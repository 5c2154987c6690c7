"""The group that `recipe`, `matrix`, `images` and `audit` are."""

from __future__ import annotations

import sys

import click


class Group(click.Group):
    """A click group whose help shows the first sentence of each command whole: click's own cuts it to one line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(sys.maxsize)) for name in self.list_commands(ctx)])
