"""From a command line to a plan: asks this machine for facts, and lets the pure functions decide in order.

recipe → hardware → lane → devices → stack → engine and image → config → adaptations → memory → plan.
"""

from __future__ import annotations

import os
import pwd
import secrets as random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fl import builtin, extras, inputs, matrix, memory_check, modelscope, paths, pin, plan, portability, refused, resolve, settings, wheel
from fl.choose_engine import Chosen, choose_engine
from fl.detect import detect, open_host
from fl.devices import choose_devices, choose_lane, processes, restrict
from fl.errors import RecipeError
from fl.grants import Grants, Mount
from fl.lanes import LANES
from fl.resolve_model import ModelFacts, absolute, locate, model_facts
from fl.trackers import tracked_online, variables

if TYPE_CHECKING:
    from fl.hardware import Accelerator, Hardware, LaneName, Problem
    from fl.recipe import Recipe
    from fl_trainers.config import Config

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_KEPT = ("OMP_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "NCCL_DEBUG", "HF_ENDPOINT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Flags of `fl run`; None: not given, the recipe's `fl:` mapping and then the default hold."""

    hw: str | None = None
    engine: str | None = None
    python: Path | None = None
    stack: str | None = None
    image: str | None = None
    devices: str | None = None
    dry_run: bool = False
    strict: bool = False
    force: bool = False
    trust: bool = False
    detach: bool = False
    replay: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """All that `fl run` shows, writes and executes."""

    plan: plan.Plan
    config: Config
    recipe: Recipe
    hardware: Hardware
    chosen: tuple[Accelerator, ...]
    stack: matrix.Stack
    lock: Path | None
    """The lock that a host environment is made from; None: an image or interpreter is taken as it is."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Name → value. Never printed, never in the plan."""
    folder: Path
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one of many runs keeps its files, and the machine that they share."""

    run: str
    folder: Path
    output: Path
    hardware: Hardware


def decide(source: str, overrides: Sequence[str], options: Options) -> Decision:
    """Everything before anything starts. Raises the FlError of the first thing that does not work out. Writes nothing."""
    return decide_recipe(resolve.read(source, overrides), options)


def decide_recipe(recipe: Recipe, options: Options, place: Place | None = None) -> Decision:
    """The same for a recipe that was read. One of many runs (`place`) asks no fl.lock: what is to be proven may be what is not pinned."""
    found = detect(open_host(options.replay)) if place is None else place.hardware
    hardware, restrictions = restrict(found, os.environ)
    lane = choose_lane(hardware, options.hw or recipe.launcher.hw or "auto")
    chosen, device_notes = choose_devices(hardware, lane, options.devices or recipe.launcher.devices)
    rows = matrix.load()
    facts = _facts(recipe)
    pinned = _pinned(rows, recipe, lane, options) if place is None else None
    engine = choose_engine(rows, recipe, hardware, chosen, lane, facts, options, settings.load(), pinned)
    if pinned is not None:
        pin.check_used(pinned, _used(engine, hardware))
    run = run_name(recipe.name) if place is None else place.run
    folder = paths.runs_home() / run if place is None else place.folder
    config = _config(recipe, run, lane, engine.stack.id, folder, None if place is None else str(place.output))
    with refused.told(recipe, config, hardware, chosen, lane, engine, rows):
        config, adaptations = portability.adapt(
            config,
            engine.stack,
            portability.precision(chosen, hardware.cpu),
            model_known=portability.model_known(rows, engine.stack, facts.model_type),
            packages=None if engine.differences or (engine.lock is None and engine.facts.name == "host") else _locked(engine),
            stacks=rows.stacks,
            quantized=facts.quantized,
        )
        extra = extras.choose(rows, engine.stack, hardware.platform, config) if _ours(engine, options, recipe) else ()
        if options.strict:
            portability.strict_check(adaptations)
        memory_check.check(config, facts, hardware, chosen, asked=options.devices or recipe.launcher.devices, force=options.force)
    check_trust(config, engine.facts.name, trust=options.trust)  # of what is left of it: code that is not run needs no trust
    resolve.check_output(config.training.output_dir, config.training)
    return _assemble(
        recipe, config, hardware, chosen, lane, engine, options, folder, adaptations, extra,
        (*restrictions, *device_notes, *(pin.said(Path.cwd(), pinned, lane, extras=bool(extra)) if place is None else ())), rows.sha256,
    )  # fmt: skip


def _pinned(rows: matrix.Matrix, recipe: Recipe, lane: LaneName, options: Options) -> pin.Pinned | None:
    """What the nearest fl.lock says of this lane, where it holds."""
    pinned = pin.for_lane(Path.cwd(), lane)
    if pinned is not None:
        pin.check(pinned, rows, options.stack or recipe.launcher.stack, options.image or recipe.launcher.image)
    return pinned


def _ours(engine: Chosen, options: Options, recipe: Recipe) -> bool:
    """Whether what runs is the stack's own: an interpreter or image of the caller's may hold anything, and is taken as it is."""
    return options.python is None and (engine.matches_lock or not (options.image or recipe.launcher.image))


def _used(engine: Chosen, hardware: Hardware) -> pin.Used:
    return pin.Used(
        engine=engine.facts.name, platform=hardware.platform or "", lock_sha256=engine.lock_sha256,
        differences=[f"{d.name} {d.found or 'missing'} (lock: {d.locked})" for d in engine.differences],
        reference=engine.image.reference, digest=engine.image.digest, image_id=engine.image_id,
        local=engine.image.source == "local" and not hardware.replayed,
    )  # fmt: skip


def _locked(engine: Chosen) -> frozenset[str] | None:
    from fl.images import lock

    return None if engine.lock is None else frozenset(lock.parse(engine.lock.read_text(encoding="utf-8")))


def check_trust(config: Config, engine: str, *, trust: bool) -> None:
    """Code of a model's, and of reward files, runs in a container, or where the caller says so."""
    files = [name.rpartition(":")[0] for name in config.method.grpo.reward_funcs if ":" in name]
    if files and engine == "host" and not trust:
        raise RecipeError(
            f"reward_funcs: {Path(files[0]).name} is code that would run on this machine without a container",
            "--engine docker keeps it in a container\n--trust runs it here all the same",
        )
    if config.model.trust_remote_code and engine == "host" and not trust:
        raise RecipeError(
            f"{config.model.name} needs code of its own (trust_remote_code), which would run on this machine without a container",
            "--engine docker keeps it in a container\n--trust runs it here all the same",
        )


def run_name(recipe: str) -> str:
    """`quickstart-20261124-150301-7c2f`."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in recipe).strip("-_").lower() or "run"
    return f"{safe[:40]}-{time.strftime('%Y%m%d-%H%M%S')}-{random.token_hex(2)}"


def _facts(recipe: Recipe) -> ModelFacts:
    name = recipe.get("model_name_or_path") or ""
    path, kind = modelscope.located(*locate(name, Path.cwd()), recipe.get("model_revision"))
    return model_facts(path, kind, name)


def _config(recipe: Recipe, run: str, lane: LaneName, stack: str, folder: Path, output: str | None) -> Config:
    name = recipe.get("model_name_or_path") or ""
    gguf = builtin.path(name)
    if gguf is None and name.lower().endswith(".gguf"):
        gguf = absolute(name, Path.cwd())
    return resolve.resolve(
        recipe,
        run_name=run,
        lane=lane,
        stack=stack,
        events=str(folder / "events.jsonl"),
        cache=str(paths.cache_home() / "trainer"),
        cwd=Path.cwd(),
        output_dir=output,
        builtin_gguf=str(gguf) if gguf and name.startswith("builtin/") else None,
        converted=None if gguf is None else str(_converted(name, gguf)),
    )


def _converted(name: str, gguf: Path) -> Path:
    """Where the trainer keeps a GGUF file's converted weights: another file, another folder."""
    import hashlib

    package = builtin.PACKAGES.get(name)
    if package is not None:
        mark = package.sha256
    else:
        facts = gguf.stat() if gguf.is_file() else None
        mark = hashlib.sha256(f"{gguf} {facts.st_size if facts else 0} {facts.st_mtime_ns if facts else 0}".encode()).hexdigest()
    return paths.cache_home() / "converted" / f"{gguf.stem}-{mark[:12]}"


def compile_cache(stack: str, mark: str | None, chosen: tuple[Accelerator, ...]) -> Path:
    """One folder of compilers' caches for each image or environment and chip: code for one is wrong for another."""
    chip = chosen[0].arch or "unknown" if chosen else "cpu"
    return paths.cache_home() / "compiled" / f"{stack}-{(mark or 'local').removeprefix('sha256:')[:12]}-{chip}"


def numbered(chosen: tuple[Accelerator, ...]) -> tuple[Accelerator, ...]:
    """The devices by index: DeepSpeed reads numbers from CUDA_VISIBLE_DEVICES and nothing else. Partitions have no index, and stay."""
    return chosen if any(device.partition for device in chosen) else tuple(replace(device, uuid=None) for device in chosen)


def _assemble(
    recipe: Recipe,
    config: Config,
    hardware: Hardware,
    chosen: tuple[Accelerator, ...],
    lane: LaneName,
    engine: Chosen,
    options: Options,
    folder: Path,
    adaptations: tuple[plan.Adaptation, ...],
    extra: tuple[extras.Chosen, ...],
    notes: tuple[str, ...],
    matrix_sha256: str,
) -> Decision:
    module = LANES[lane]
    on_host = engine.facts.name == "host"
    bound = numbered(chosen) if config.training.arguments.get("deepspeed") and (on_host or engine.facts.name == "apptainer") else chosen
    grants = Grants() if on_host else module.grants(bound, hardware, engine.facts)
    named = bool(options.image or recipe.launcher.image)
    grants = replace(grants, problems=_preflight(config, hardware, chosen, lane, engine, grants, named=named))
    asked, hub = resolve.environment(recipe, Path.cwd()), inputs.hub(config)
    needs_network = online(config, asked)
    values = {name: value for name, value in secret_values(config, hub, needs_network).items() if name not in asked}
    cache = compile_cache(engine.stack.id, engine.image.digest or engine.lock_sha256, chosen)
    request = plan.Request(
        run=config.run.name,
        lane=lane,
        stack=engine.stack.id,
        image=engine.image,
        hardware=hardware,
        chosen=chosen,
        processes=processes(hardware, chosen, options.devices or recipe.launcher.devices),
        grants=grants,
        visibility=module.visibility(bound, hardware) if on_host else {},
        engine=engine.facts,
        caller=caller(),
        python=engine.python,
        folder=str(folder),
        cache=str(cache),
        code=engine.code,
        extras=extra,
        inputs=(*inputs.read(config), *_hub_mounts(hub, needs_network), *_asked(recipe)),
        outputs=inputs.written(config),
        environment={
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            **({"HF_HUB_CACHE": str(inputs.hub_cache()), **settings.hub_environment(os.environ)} if hub else {}),
            **asked,
        },
        secrets=dict.fromkeys(values, "caller"),
        network=recipe.launcher.network or ("bridge" if needs_network else "none"),
        working_directory=str(Path.cwd()) if on_host else str(folder),
        adaptations=adaptations,
        reasons=engine.reasons,
        warnings=(*notes, *engine.warnings),
        recipe_sha256=recipe.sha256,
        matrix_sha256=matrix_sha256,
        lock_sha256=engine.lock_sha256,
        matches_lock=engine.matches_lock,
        trainer_sha256=wheel.code_sha256(),
    )
    return Decision(
        plan=plan.make(request),
        config=config,
        recipe=recipe,
        hardware=hardware,
        chosen=chosen,
        stack=engine.stack,
        lock=engine.lock,
        secrets=values,
        folder=folder,
        cache=cache,
    )


def _preflight(
    config: Config, hardware: Hardware, chosen: tuple[Accelerator, ...], lane: LaneName, engine: Chosen, grants: Grants, *, named: bool
) -> tuple[Problem, ...]:
    """What would fail after the start."""
    from fl import preflight
    from fl.engines import environment

    makes = engine.lock is not None and environment.ready(engine.lock, engine.stack.python) is None
    facts = preflight.Facts(
        engine=engine.facts,
        lane=lane,
        hardware=hardware,
        chosen=chosen,
        grants=grants,
        image=engine.image,
        image_platform=engine.image_platform,
        named_image=named,
        installs=str(environment.location(engine.lock, engine.stack.python)) if makes and engine.lock else None,
        workers=int(config.training.arguments.get("dataloader_num_workers") or 0),
    )
    return preflight.findings(preflight.look(facts))


def caller() -> plan.Caller:
    """The user of this process; a uid without a passwd entry gets a name all the same."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid{uid}"
    return plan.Caller(uid=uid, gid=os.getgid(), name=name)


def online(config: Config, asked: Mapping[str, str]) -> bool:
    """True when something is to be fetched or reported during the run. `asked`: variables of the recipe."""
    return (
        bool(tracked_online(config, {**os.environ, **asked}))
        or bool(config.training.arguments.get("push_to_hub"))
        or bool(inputs.missing(config))
    )


def secret_values(config: Config, hub: tuple[str, ...], needs_network: bool) -> dict[str, str]:
    """What must reach the training and may be seen nowhere: tokens, and proxies (their addresses may hold passwords)."""
    values = {name: os.environ[name] for name in _PROXIES if needs_network and name in os.environ}
    if hub and needs_network and (token := hub_token()):
        values["HF_TOKEN"] = token
    return values | variables(config, os.environ)


def hub_token() -> str | None:
    """The caller's hub token, from the variable or from the file that `hf auth login` writes."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable):
            return os.environ[variable]
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _hub_mounts(hub: tuple[str, ...], needs_network: bool) -> tuple[Mount, ...]:
    """The hub cache, never the whole HF_HOME; read-only when everything is there."""
    cache = str(inputs.hub_cache())
    return (Mount(source=cache, target=cache, read_only=not needs_network),) if hub else ()


def _asked(recipe: Recipe) -> tuple[Mount, ...]:
    """Mounts of the recipe's `fl:` mapping."""
    result = []
    for path, writable in recipe.launcher.mounts:
        place = str(absolute(path, Path.cwd()))
        if not Path(place).exists():
            raise RecipeError(f"fl.mounts: {place} is not there", f"mkdir {place}")
        result.append(Mount(source=place, target=place, read_only=not writable))
    return tuple(result)
