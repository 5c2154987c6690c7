"""Everything that is decided before anything starts. One Plan for a dry run and for the run; `argv` is what is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fl import apptainer_argv, container
from fl.errors import EngineError
from fl.grants import EngineFacts, EngineName, Grants, Mount
from fl.hardware import Accelerator, Hardware, LaneName, Problem

if TYPE_CHECKING:
    from fl.extras import Chosen as Extra

HIDDEN = "(from the caller, not shown)"
GRACE = 120
"""Seconds between SIGTERM and SIGKILL: what one checkpoint may take. The same number reaches engine, ranks and schedulers."""

# The compilers' caches, relative to one writable folder, so that the second run does not compile again.
_CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "MIOPEN_USER_DB_PATH": "miopen",
    "MIOPEN_CUSTOM_CACHE_DIR": "miopen",
    "ASCEND_WORK_PATH": "ascend",
    "MPLCONFIGDIR": "matplotlib",
    "HF_HOME": "huggingface",
    "HF_DATASETS_CACHE": "datasets",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """A key of the recipe that this stack cannot do as written, and what is done instead."""

    key: str
    before: object
    after: object
    reason: str
    effect: Literal["none", "speed", "numerics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The image of a plan; `source` is where it comes from."""

    reference: str | None = None
    digest: str | None = None
    source: Literal["local", "pull", "build", "none"] = "none"
    file: str | None = None
    """Apptainer: the image file or folder that the argv names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One stack's verdict."""

    stack: str
    chosen: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who runs this; what a run creates belongs to them."""

    uid: int
    gid: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the plan is made of: the decisions before it, and facts of this machine."""

    run: str
    lane: LaneName
    stack: str
    flavor: str = "train"
    image: Image = Image()
    hardware: Hardware
    chosen: tuple[Accelerator, ...]
    grants: Grants
    visibility: Mapping[str, str]
    """For the host engine: what binds a process to the chosen devices."""
    engine: EngineFacts
    caller: Caller
    python: str
    """Interpreter as the engine sees it."""
    folder: str
    """The run's own folder, writable; config.json is there."""
    cache: str
    """Writable folder of compilers' caches."""
    code: str | None
    """Folder with the trainer's code; None: the image or interpreter has it installed."""
    extras: tuple[Extra, ...] = ()
    """Optional packages beside the stack's own: a folder each, on Python's path."""
    inputs: tuple[Mount, ...] = ()
    outputs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Name → where the value comes from, never the value."""
    network: str = "none"
    working_directory: str
    detach: bool = False
    processes: int = 1
    """On a processor; with devices there is one a device."""
    adaptations: tuple[Adaptation, ...] = ()
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    recipe_sha256: str = ""
    matrix_sha256: str = ""
    lock_sha256: str | None = None
    matches_lock: bool = False
    trainer_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See design §4.5."""

    run: str
    lane: LaneName
    stack: str
    engine: EngineName
    flavor: str
    image: Image
    accelerators: tuple[int, ...]
    devices: tuple[str, ...]
    mounts: tuple[Mount, ...]
    groups: tuple[int, ...]
    environment: Mapping[str, str]
    options: Mapping[str, object]
    nodes: int
    per_node: int
    argv: tuple[str, ...]
    working_directory: str
    adaptations: tuple[Adaptation, ...] = ()
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    """Preflight findings; errors among them stop a real run."""
    recipe_sha256: str = ""
    matrix_sha256: str = ""
    lock_sha256: str | None = None
    matches_lock: bool = False
    """The packages that will be used are known to be the lock's."""
    trainer_sha256: str | None = None
    """Hash of the trainer's code; None inside an image of ours, which brings its own."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    extras: tuple[Extra, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of `fl run --dry-run --json` and plan.json."""
        shown = dict.fromkeys(self.secrets, HIDDEN)
        return {
            "schema": 1,
            "run": self.run,
            "lane": self.lane,
            "stack": self.stack,
            "engine": self.engine,
            "flavor": self.flavor,
            "image": {"reference": self.image.reference, "digest": self.image.digest, "source": self.image.source},
            "accelerators": list(self.accelerators),
            "devices": list(self.devices),
            "mounts": [{"source": m.source, "target": m.target, "read_only": m.read_only} for m in self.mounts],
            "groups": list(self.groups),
            "environment": dict(sorted({**self.environment, **shown}.items())),
            "options": dict(self.options),
            "processes": {"nodes": self.nodes, "per_node": self.per_node},
            "argv": list(self.argv),
            "working_directory": self.working_directory,
            "adaptations": [
                {"key": a.key, "from": a.before, "to": a.after, "reason": a.reason, "effect": a.effect} for a in self.adaptations
            ],
            "reasons": [{"stack": r.stack, "chosen": r.chosen, "why": r.why} for r in self.reasons],
            "warnings": list(self.warnings),
            "problems": [
                {"code": p.code, "severity": p.severity, "lane": p.lane, "message": p.message, "remedy": p.remedy} for p in self.problems
            ],
            "recipe_sha256": self.recipe_sha256,
            "matrix_sha256": self.matrix_sha256,
            "lock_sha256": self.lock_sha256,
            "matches_lock": self.matches_lock,
            "trainer_sha256": self.trainer_sha256,
            **({"extras": [extra.to_json() for extra in self.extras]} if self.extras else {}),
        }


def make(request: Request) -> Plan:
    """The plan of a request. Pure: the same request gives the same plan."""
    per_node = len(request.chosen) or request.processes
    program = trainer_argv(request.python, f"{request.folder}/config.json", per_node)
    environment = base_environment(request, per_node)
    if request.engine.name == "host":
        environment |= request.visibility
        argv, box = program, container.Box()
    else:
        refuse_engine(request.engine)
        environment |= dict(request.grants.environment) | container.identity(request.caller.name, f"{request.cache}/home")
        if request.secrets:
            environment["FL_SECRETS"] = f"{request.folder}/secrets.json"
        if request.engine.name == "apptainer":
            environment[apptainer_argv.MARK] = request.run
            box = apptainer_argv.describe(request, environment)
        else:
            box = container.describe(request, environment)
        argv = (*box.arguments, *program)
    return Plan(
        run=request.run, lane=request.lane, stack=request.stack, engine=request.engine.name, flavor=request.flavor, image=request.image,
        accelerators=tuple(a.index for a in request.chosen),
        devices=(*request.grants.devices, *request.grants.cdi),
        mounts=box.mounts, groups=request.grants.groups, environment=environment,
        options={**box.options, "isolated": request.grants.isolated and request.engine.name != "host"}, nodes=1, per_node=per_node,
        argv=argv, working_directory=request.working_directory, adaptations=request.adaptations, reasons=request.reasons,
        warnings=(*request.warnings, *request.grants.notes), problems=request.grants.problems,
        recipe_sha256=request.recipe_sha256, matrix_sha256=request.matrix_sha256, lock_sha256=request.lock_sha256,
        matches_lock=request.matches_lock, trainer_sha256=request.trainer_sha256, secrets=request.secrets,
        extras=request.extras,
    )  # fmt: skip


def trainer_argv(python: str, config: str, per_node: int) -> tuple[str, ...]:
    """One process is started as it is; several by torchrun, meeting on this machine by address, not by name."""
    if per_node == 1:
        return (python, "-m", "fl_trainers", config)
    return (
        python, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(per_node), "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "--max-restarts", "0", "-m", "fl_trainers", config,
    )  # fmt: skip


def base_environment(request: Request, per_node: int) -> dict[str, str]:
    """What every engine sets: unbuffered output, one folder of caches, threads, and how ranks meet."""
    values = {name: f"{request.cache}/{folder}" for name, folder in _CACHES.items()}
    values |= {"PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ours = [*([request.code] if request.code is not None else []), *(str(extra.folder) for extra in request.extras)]
    if ours:
        values["PYTHONPATH"] = ":".join(ours)
    if per_node > 1:
        values["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(GRACE)
        values["OMP_NUM_THREADS"] = str(max(1, request.hardware.cpu.cores // per_node))
        if request.network == "none":
            values["GLOO_SOCKET_IFNAME"] = "lo"
    if request.network == "none":
        values |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return values | dict(request.environment)


def refuse_engine(engine: EngineFacts) -> None:
    """EngineError where the engine cannot give the caller what it creates, or sees other files."""
    if engine.userns_remap:
        raise EngineError(
            f"this {engine.name} daemon remaps users (userns-remap), so a run could neither open devices nor write files as its caller",
            "use `--engine podman` or `--engine host`, or start the daemon without userns-remap",
        )
    if not engine.same_files:
        raise EngineError(
            f"the {engine.name} daemon sees another file system than this machine, so recipe, data and output cannot be mounted",
            "run fl where the daemon runs, unset DOCKER_HOST, or use `--engine host`",
        )
