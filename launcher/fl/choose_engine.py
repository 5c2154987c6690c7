"""Which engine runs it, and so which row, image or environment: asks engines and interpreters, and says why."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fl import __version__, paths, pin, plan, select
from fl.errors import EngineError, ImageError, MatrixError, UsageError
from fl.grants import EngineFacts, EngineName
from fl.images import lock, tags

if TYPE_CHECKING:
    from fl import matrix
    from fl.decide import Options
    from fl.engines.pythons import Difference
    from fl.hardware import Accelerator, Hardware, LaneName
    from fl.pin import Pinned
    from fl.recipe import Recipe
    from fl.resolve_model import ModelFacts
    from fl.settings import Mirrors, Settings

CONTAINERS: tuple[EngineName, ...] = ("docker", "podman", "apptainer")
_ESCAPES = "its daemon would start the run outside this Slurm job, whose limits and devices then do not hold"
IMAGE_PYTHON = "/opt/venv/bin/python"
ASSUMED = {
    "docker": EngineFacts(name="docker"),
    "podman": EngineFacts(name="podman", rootless=True, nvidia_gpus=False, cdi_assumed=True),
    "apptainer": EngineFacts(name="apptainer", nvidia_gpus=False),
}
"""An engine's defaults, for a machine that is only a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The engine, the row that fits it, and what it starts."""

    facts: EngineFacts
    stack: matrix.Stack
    image: plan.Image
    python: str
    code: str | None
    lock: Path | None
    lock_sha256: str | None
    differences: tuple[Difference, ...] = ()
    matches_lock: bool = False
    """The packages that will be used are known to be the lock's."""
    reasons: tuple[plan.Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    image_platform: str | None = None
    """Of a local image."""
    image_id: str | None = None
    """Of a local image, as its engine knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every engine."""

    rows: matrix.Matrix
    hardware: Hardware
    chosen: tuple[Accelerator, ...]
    lane: LaneName
    model_type: str | None
    options: Options
    stack: str | None
    image: str | None
    registry: str | None
    mirrors: Mirrors
    pinned: Pinned | None = None

    def choose(self, engine: EngineName, pythons: frozenset[str] | None = None, own_interpreter: bool = False) -> select.Choice:
        """The row for an engine."""
        needs = select.Needs(
            platform=self.hardware.platform, engine=engine, pythons=pythons, own_interpreter=own_interpreter, model_type=self.model_type
        )
        force = self.options.force
        by = "--stack was given" if self.pinned is None else f"{self.pinned.path} pins it"
        return select.choose(self.rows, self.hardware, self.chosen, self.lane, needs, stack_id=self.stack, force=force, named_by=by)


def choose_engine(
    rows: matrix.Matrix,
    recipe: Recipe,
    hardware: Hardware,
    chosen: tuple[Accelerator, ...],
    lane: LaneName,
    facts: ModelFacts,
    options: Options,
    settings: Settings,
    pinned: Pinned | None = None,
) -> Chosen:
    """By name, or the first that can: docker, podman, apptainer, host. Never builds an image. `pinned`: its stack and image."""
    image = pinned.entry.image if pinned is not None else None
    question = Question(
        rows=rows,
        hardware=hardware,
        chosen=chosen,
        lane=lane,
        model_type=facts.model_type,
        options=options,
        stack=pinned.entry.stack if pinned is not None else options.stack or recipe.launcher.stack,
        image=image.reference if image is not None else options.image or recipe.launcher.image,
        registry=settings.registry,
        mirrors=settings.mirrors,
        pinned=pinned,
    )
    name = options.engine or recipe.launcher.engine or "auto"
    if options.python is not None and name in CONTAINERS:
        raise UsageError(f"--python names an interpreter of this machine, --engine {name} uses its image's", "use `--engine host`")
    if name in CONTAINERS:
        return _container(question, name, (f"docker: asked for, although {_ESCAPES}",) if name == "docker" and _in_slurm() else ())
    if name == "host" or options.python is not None:
        return _host(question, ())
    return _automatic(question)


def _automatic(question: Question) -> Chosen:
    from fl.engines.pythons import image_interpreter

    if question.hardware.replayed:
        return _container(question, "docker", ("docker: assumed with its defaults, a replay asks no engine",))
    if image_interpreter() is not None:
        return _host(question, ("host: fl runs inside one of its own images",))
    from fl import engines

    passed: list[str] = []
    if _in_slurm():
        passed.append(f"docker: {_ESCAPES}")
    for name in CONTAINERS[1:] if passed else CONTAINERS:
        answer = engines.ask(name)
        if isinstance(answer, EngineError):
            passed.append(f"{name}: {_first_line(answer.message)}")
            continue
        try:
            found = _container(question, name, (), answer)
        except (EngineError, ImageError) as error:
            passed.append(f"{name}: {_first_line(error.message)}")
            continue
        if found.image_platform not in (None, question.hardware.platform):
            passed.append(f"{name}: answers, but image {found.image.reference} is for {found.image_platform}")
            continue
        if found.image.source in ("local", "pull"):
            return _with_notes(found, (*passed, f"{name}: answers, and image {found.image.reference} is {_where(found.image.source)}"))
        passed.append(f"{name}: answers, but image {found.image.reference} is not here and no registry is configured")
    return _host(question, (*passed, "host: a virtual environment from the same lock"))


def _in_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


def _where(source: str) -> str:
    return "local" if source == "local" else "to be pulled"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _with_notes(chosen: Chosen, notes: tuple[str, ...]) -> Chosen:
    engine = tuple(plan.Reason(stack=chosen.stack.id, chosen=True, why=f"engine {note}") for note in notes)
    return replace(chosen, reasons=(*chosen.reasons, *engine))


def _reasons(choice: select.Choice, notes: tuple[str, ...]) -> tuple[plan.Reason, ...]:
    rows = [plan.Reason(stack=v.stack.id, chosen=v.chosen, why="; ".join((*v.why, *v.warnings))) for v in choice.verdicts]
    return (*rows, *(plan.Reason(stack=choice.stack.id, chosen=True, why=f"engine {note}") for note in notes))


def _container(question: Question, name: EngineName, notes: tuple[str, ...], facts: EngineFacts | None = None) -> Chosen:
    choice = question.choose(name)
    reference = question.image or tags.reference(choice.stack.id, "train", __version__, question.registry)
    if not pin.REFERENCE.fullmatch(reference):  # it would be read as an option of the engine
        raise UsageError(f"the image {reference!r} is no reference", "--image NAME:TAG, NAME@sha256:…, or a file for apptainer")
    pinned = None if question.pinned is None else question.pinned.entry.image
    unpushed = pinned is not None and pinned.digest is None
    remote = not unpushed and (question.image is not None or question.registry is not None)
    image = plan.Image(
        reference=reference, source="pull" if remote else "none" if question.hardware.replayed else "build", file=_file(name, reference)
    )
    built = platform = ident = None
    if question.hardware.replayed:
        facts, image = ASSUMED[name], _mirrored(question, name, image)
    else:
        from fl import engines

        engine = engines.get(name)
        facts = facts or engine.facts()
        local = engine.image(reference)
        if local is not None:
            image = plan.Image(reference=reference, digest=local.digest, source="local" if local.local else "pull", file=local.file)
            built, platform, ident = local.labels.get("fl.lock.sha256"), local.platform, local.id
        else:
            image = _mirrored(question, name, _by_digest(question, image))
            local = engine.image(image.reference or "") if image.reference != reference else None
            if local is not None:
                image = replace(image, digest=local.digest, source="local" if local.local else "pull", file=local.file)
                built, platform, ident = local.labels.get("fl.lock.sha256"), local.platform, local.id
    locked = lock.path(choice.stack.id, "train", question.hardware.platform)
    ours = None if locked is None else lock.sha256(locked)
    other = ("the image was built from another lock than this version of fl has",) if built and built != ours else ()
    return Chosen(
        facts=facts,
        stack=choice.stack,
        image=image,
        python=IMAGE_PYTHON,
        code=_code_folder(),  # not the image's own copy: launcher and trainer are then always of one version
        lock=None,
        lock_sha256=built or ours,
        matches_lock=built is not None and built == ours,
        reasons=_reasons(choice, notes),
        warnings=other,
        image_platform=platform,
        image_id=ident,
    )


def _by_digest(question: Question, image: plan.Image) -> plan.Image:
    """A pinned image that is not here is pulled by its digest: a tag may have moved."""
    pinned, reference = None if question.pinned is None else question.pinned.entry.image, image.reference or ""
    if pinned is None or pinned.digest is None or "@" in reference:
        return image
    tail = reference.rsplit("/", 1)[-1]
    repository = reference[: len(reference) - len(tail)] + tail.split(":")[0]
    return replace(image, reference=f"{repository}@{pinned.digest}", digest=pinned.digest)


def _mirrored(question: Question, name: EngineName, image: plan.Image) -> plan.Image:
    """An image that is to be pulled comes from the site's mirror of its registry, where the settings name one."""
    reference = question.mirrors.image(image.reference or "")
    if image.source != "pull" or reference == image.reference:
        return image
    return replace(image, reference=reference, file=_file(name, reference))


def _file(name: EngineName, reference: str) -> str | None:
    """Apptainer: where an image will be that is not here yet."""
    if name != "apptainer":
        return None
    from fl.engines import apptainer_image

    return str(apptainer_image.named(reference) or apptainer_image.place(reference))


def _host(question: Question, notes: tuple[str, ...]) -> Chosen:
    from fl.engines import environment, pythons

    inside = pythons.image_interpreter()
    given = question.options.python or inside
    at_hand = None if given is not None or question.hardware.replayed else frozenset(pythons.pythons())
    choice = question.choose("host", at_hand, given is not None)
    locked = lock.path(choice.stack.id, "train", question.hardware.platform)
    code = None if inside is not None else _code_folder()
    facts = EngineFacts(name="host") if question.hardware.replayed else _host_facts()
    if given is not None:
        differences = () if locked is None or question.hardware.replayed else pythons.inspect_interpreter(given, locked).differences
        told = _told(differences)
        return Chosen(facts=facts, stack=choice.stack, image=plan.Image(), python=str(given), code=code, lock=None,
                      lock_sha256=None if locked is None else lock.sha256(locked), differences=differences,
                      matches_lock=locked is not None and not differences, reasons=_reasons(choice, notes), warnings=told)  # fmt: skip
    if locked is None:
        raise MatrixError(
            f"stack {choice.stack.id} has no lock for {question.hardware.platform}, so no environment can be made from it",
            "use an interpreter that has torch and the trainer's libraries: --python PATH\n"
            f"or an image: fl images build {choice.stack.id}, then --engine docker",
        )
    python = environment.location(locked, choice.stack.python) / "bin" / "python"
    return Chosen(facts=facts, stack=choice.stack, image=plan.Image(), python=str(python), code=code, lock=locked,
                  lock_sha256=lock.sha256(locked), matches_lock=True, reasons=_reasons(choice, notes))  # fmt: skip


def _host_facts() -> EngineFacts:
    from fl import engines

    return engines.get("host").facts()


def _told(differences: tuple[Difference, ...]) -> tuple[str, ...]:
    if not differences:
        return ()
    shown = ", ".join(f"{d.name} {d.found or 'missing'} (lock: {d.locked})" for d in differences[:6])
    more = f" and {len(differences) - 6} more" if len(differences) > 6 else ""
    return (f"the interpreter of --python differs from the stack's lock in {len(differences)} packages: {shown}{more}",)


def _code_folder() -> str:
    """Where the trainer's code will be unpacked: known before it is, since it is named by its content."""
    from fl import wheel

    return str(paths.cache_home() / "code" / wheel.code_sha256()[:16])


def missing_image(engine: EngineName, stack: str, reference: str) -> ImageError:
    """An image that is neither here nor anywhere to pull from."""
    return ImageError(
        f"image {reference} is not in {engine}'s store, and no registry is configured to pull it from",
        f"fl images build {stack}\nor without a container: --engine host\nor name one: --image REF",
    )
