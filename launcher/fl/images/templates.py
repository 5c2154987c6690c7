"""Templates of Dockerfiles, rendered: a template that is broken is said with its file, its line and its circle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.errors import ImageError

if TYPE_CHECKING:
    from jinja2 import Environment

_REMEDY = "mend the template, then fl images render STACK"


def render(folder: Path, name: str, values: dict[str, Any]) -> str:
    """The text. ImageError for templates that include each other in a circle, are malformed, missing, or name what nothing fills."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound, TemplateSyntaxError

    environment = Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        if circle := _circle(environment, name, ()):
            raise ImageError(f"templates include each other in a circle: {' → '.join(circle)}", _REMEDY)
        return environment.get_template(name).render(**values)
    except TemplateSyntaxError as error:
        raise ImageError(f"{folder / (error.name or name)}, line {error.lineno}: {error.message}", _REMEDY) from error
    except TemplateNotFound as error:
        raise ImageError(f"{folder / name} wants the template {error.name}, which is not there", f"ls {folder}") from error
    except (TemplateError, TypeError, ValueError, RecursionError) as error:
        raise ImageError(f"{folder / name} cannot be filled: {error}", _REMEDY) from error


def _circle(environment: Environment, name: str, way: tuple[str, ...]) -> tuple[str, ...]:
    """The templates that lead from one back to itself; empty where none does."""
    from jinja2 import meta

    if name in way:
        return (*way[way.index(name) :], name)
    if environment.loader is None:
        return ()
    source = environment.loader.get_source(environment, name)[0]
    for other in sorted(one for one in meta.find_referenced_templates(environment.parse(source, name)) if one):
        if found := _circle(environment, other, (*way, name)):
            return found
    return ()
