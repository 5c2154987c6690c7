"""Checks of what runs containers: engines, how they get the devices, images. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from fl import engines
from fl.causes import explain
from fl.errors import EngineError
from fl.findings import Finding
from fl.hardware import Evidence, names
from fl.lanes import LANES

if TYPE_CHECKING:
    from fl.doctor_facts import Engines, Facts
    from fl.grants import EngineFacts

REPLAY: Final = "a replay looks at nothing but the record"
_SPEC: Final = "sudo nvidia-ctk cdi generate --output="


def engine(facts: Facts) -> Iterator[Finding]:
    """What can run a plan. An engine that is installed and does not answer is an error where nothing else can or the caller names it."""
    if facts.engines is None:
        yield Finding(check="engine", status="skipped", finding=REPLAY)
        return
    containers = [name for name in facts.engines.answers if name != "host"]
    other = bool(containers) or any(row.host_stack and row.locked for row in facts.stacks)
    for name in engines.ENGINES:
        if name in containers:
            yield _answering(facts.engines.answers[name])
        elif name in facts.engines.errors:
            yield _silent(name, facts.engines.errors[name], other and name not in facts.engines.asked_for)
    if not containers and not facts.engines.errors:
        yield Finding(check="engine", status="skipped", finding="no container engine is installed")
    yield from _host(facts, facts.engines, alone=not containers)
    if facts.system.slurm and "docker" in containers:
        yield Finding(
            check="engine",
            status="warning",
            finding="inside a Slurm job, docker's containers are not bound to the devices of the job",
            evidence=(Evidence("SLURM_JOB_ID", facts.system.slurm),),
            remedy="--engine apptainer or --engine host",
        )


def _silent(name: str, error: EngineError, other: bool) -> Finding:
    cause = explain(error.message)
    text = error.message + (f" ({cause.cause})" if cause else "")
    return Finding(
        check="engine",
        status="warning" if other else "error",
        finding=text if name in text.lower() else f"{name}: {text}",
        evidence=(Evidence(name, error.message),),
        remedy=error.remedy,
    )


def _answering(answer: EngineFacts) -> Finding:
    from fl.plan import refuse_engine

    words = ", ".join(
        [f"{answer.name} {answer.version or ''}".strip(), *(["rootless"] if answer.rootless else []), f"cgroup v{answer.cgroup}"]
    )
    seen = (Evidence(f"{answer.name} info", words),)
    try:
        refuse_engine(answer)
    except EngineError as error:
        return Finding(check="engine", status="error", finding=error.message, evidence=seen, remedy=error.remedy)
    return Finding(check="engine", status="ok", finding=words, evidence=seen)


def _host(facts: Facts, found: Engines, alone: bool) -> Iterator[Finding]:
    """The host engine needs a Python of a row that has a lock."""
    have = ", ".join(sorted(found.pythons)) or "none"
    seen = tuple(Evidence(str(path), f"Python {version}") for version, path in sorted(found.pythons.items()))
    for row in facts.stacks:
        if row.host_stack and row.locked:
            text = f"host: Python {row.python} makes the environment of {row.host_stack}"
            yield Finding(check="engine", status="ok", finding=text, evidence=seen)
        elif row.host_stack:
            text = f"host: {row.host_stack} has no lock for {facts.hardware.platform}, so only an interpreter of your own can be used"
            yield Finding(
                check="engine", status="error" if alone else "warning", finding=text, evidence=seen, remedy="fl run --python PATH"
            )
        elif row.stack:
            text = f"host: no stack of the {row.lane} lane that fits this machine has its Python here (found: {have})"
            yield Finding(
                check="engine",
                status="error" if alone else "warning",
                finding=text,
                evidence=seen,
                remedy=f"uv python install {row.wants}\nfl run --python PATH   uses an interpreter that has torch",
            )


def runtime(facts: Facts) -> Iterator[Finding]:
    """How each engine gets the devices into a container: CDI, a hook, nodes and groups, the vendors' files."""
    if facts.engines is None:
        yield Finding(check="runtime", status="skipped", finding=REPLAY)
        return
    told = False
    needed = False
    for name, answer in facts.engines.answers.items():
        for lane, module in LANES.items() if name != "host" else ():
            devices = tuple(a for a in facts.hardware.of_lane(lane) if a.usable is not False)
            if not devices:
                continue
            told = True
            chosen = devices if module.PARTITIONS_TOGETHER or not any(a.partition for a in devices) else devices[:1]
            grants = module.grants(chosen, facts.hardware, answer)
            for problem in grants.problems:
                needed = needed or problem.severity == "error"
                seen = (Evidence(f"{name} info", problem.code),)
                yield Finding(
                    check="runtime", status=problem.severity, finding=f"{name}: {problem.message}", evidence=seen, remedy=problem.remedy
                )
            if not grants.problems:
                way = (
                    "by CDI"
                    if grants.cdi
                    else "by --gpus"
                    if grants.gpus
                    else "by device nodes"
                    if grants.devices
                    else " ".join(grants.flags)
                )
                passed = ", ".join((*grants.cdi, *grants.devices)) or grants.gpus or " ".join(grants.flags)
                yield Finding(
                    check="runtime",
                    status="ok",
                    finding=f"{name} passes {names(chosen)} {way}".rstrip(),
                    evidence=(Evidence(name, passed),),
                )
    for path, gone in facts.engines.stale.items():
        yield Finding(
            check="runtime",
            status="error" if needed else "warning",
            evidence=(Evidence(path, gone),),
            finding=f"the CDI spec {path} is stale: it names {gone}, which is gone (the driver was changed since)",
            remedy=_SPEC + path if "nvidia" in path else f"sudo rm {path}",
        )
    if not told and not facts.engines.stale:
        why = "no accelerator to pass" if not facts.hardware.accelerators else "no container engine answers, or no device is usable"
        yield Finding(check="runtime", status="skipped", finding=why)


def image(facts: Facts) -> Iterator[Finding]:
    """The image of the row that fits: here, and for this processor."""
    if facts.engines is None:
        yield Finding(check="image", status="skipped", finding=REPLAY)
        return
    from fl.doctor_facts import reference

    stacks = [row.stack for row in facts.stacks if row.stack]
    containers = [name for name in facts.engines.answers if name != "host"]
    if not containers or not stacks:
        yield Finding(check="image", status="skipped", finding="no container engine answers" if stacks else "no stack fits")
        return
    for stack in stacks:
        name = reference(stack, facts.registry)
        local = {each: found for (each, row), found in facts.engines.images.items() if row == stack and found.local}
        for each, found in local.items():
            seen = (Evidence(f"{each} image inspect", f"{found.platform}, {found.digest or found.id}"),)
            if found.platform != facts.hardware.platform:
                yield Finding(
                    check="image",
                    status="error",
                    evidence=seen,
                    remedy=f"fl images build {stack}",
                    finding=f"{name} in {each}'s store is for {found.platform}, this machine is {facts.hardware.platform}",
                )
            else:
                yield Finding(check="image", status="ok", finding=f"{name} is in {each}'s store", evidence=seen)
        if not local and facts.registry:
            yield Finding(check="image", status="ok", finding=f"{name} is not here yet: it is pulled by the first run")
        elif not local:
            yield Finding(
                check="image",
                status="skipped",
                finding=f"{name} is not here, and no registry is configured: the host engine needs none",
                remedy=f"fl images build {stack}",
            )
