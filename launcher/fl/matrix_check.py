"""Whether matrix.yaml holds together: form, names, driver floors, pins against the recorded incompatibilities, claims against sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from packaging.version import Version

from fl import matrix_rules
from fl.errors import MatrixError
from fl.matrix import BEHIND, Drivers, Flavor, Incompatibility, Matrix, Stack
from fl.matrix_form import Finding, Location, Places, nearest, read_form
from fl.versions import driver_below, driver_clauses, driver_key, is_specifier, is_version

__all__ = ["FEATURES", "Finding", "check"]

FEATURES: Final = ("bf16", "fp16", "fp8", "flash_attention", "bnb_4bit", "bnb_8bit", "deepspeed", "fsdp2", "liger", "triton")
_ATTENTION: Final = ("none", "wheel", "kernels")
_TRAINER: Final = ("torch", "gguf", "matplotlib", "pydantic")
"""What the shared trainer imports beside the layer."""
_PLATFORMS: Final = ("linux/amd64", "linux/arm64")
_CHIP: Final = re.compile(r"sm_[0-9]{2,3}|gfx[0-9a-f]{3,4}|ascend[0-9]+[0-9a-z_]*|xe[0-9a-z]*(-[a-z]+)*")
_DAY: Final = re.compile(r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")
_PYTHON: Final = re.compile(r"3\.[0-9]{1,2}")
_TAG_PYTHON: Final = re.compile(r"py(3\.[0-9]+)")
_EXTRA: Final = re.compile(r"[a-z][a-z0-9-]*")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

Found = Iterator[tuple[Location, str, str]]
"""Path, message, remedy."""


def check(source: str | Path) -> list[Finding]:
    """What is wrong with a matrix, given as text or as the path of a file; empty when nothing is. MatrixError: the file cannot be read."""
    if isinstance(source, Path):
        try:
            text = source.read_text(encoding="utf-8")
        except OSError as error:
            raise MatrixError(f"the matrix cannot be read: {source}: {error.strerror}", "fl matrix check FILE") from error
        except UnicodeDecodeError as error:
            return [Finding(f"byte {error.start}", "not UTF-8", "save the file as UTF-8")]
    else:
        text = source
    found, matrix = read_form(text)
    if matrix is None:
        return found
    wrong = list(_content(matrix))
    if not wrong:
        return []
    places = Places(text)
    return [Finding(places.where(location), message, remedy) for location, message, remedy in wrong]


def _content(matrix: Matrix) -> Found:
    yield from _tables(matrix)
    seen: dict[str, int] = {}
    for number, stack in enumerate(matrix.stacks):
        here: Location = ("stacks", number)
        if stack.id in seen:
            yield (*here, "id"), f"the id {stack.id} is given twice", "add a word that tells the rows apart"
        seen[stack.id] = number
        for rule in (_names, _base, _index, _versions, _hosts, _drivers, _features, _claims, _pins):
            for path, message, remedy in rule(matrix, stack):
                yield (*here, *path), message, remedy


def _tables(matrix: Matrix) -> Found:
    """Layers, drivers, models and incompatibilities by themselves."""
    for layer, pins in matrix.layers.items():
        for name, version in pins.items():
            yield from _exact(("layers", layer, name), version)
    for runtime, table in matrix.drivers.items():
        for key in ("floors", "shipped", "newest"):
            for release, version in getattr(table, key).items():
                if driver_key(version) is None:
                    path = ("drivers", runtime, key, release)
                    yield path, f"'{version}' is not a driver version", "write numbers with dots, e.g. 580.65.06"
        yield from _driver_tables(runtime, table)
        yield from _sourced(("drivers", runtime, "source"), table.source)
    for index, entry in matrix.indexes.items():
        yield from _sourced(("indexes", index, "source"), entry.source)
        if not entry.url.startswith("https://"):
            yield ("indexes", index, "url"), f"'{entry.url}' is not an https address", ""
    for family, models in matrix.models.items():
        for name, known in models.types.items():
            for key, value in (("transformers", known.transformers), ("vllm", known.vllm), ("vllm_last", known.vllm_last)):
                if value is not None:
                    yield from _exact(("models", family, "types", name, key), value)
    yield from _extras(matrix)
    yield from _table_claims(matrix)
    for number, one in enumerate(matrix.incompatibilities):
        yield from _rule_form(number, one)
        yield from _models(matrix, one)


def _table_claims(matrix: Matrix) -> Found:
    """Tables whose entries have no source of their own must have one, and every feature is in its table where there is one."""
    wanted = [*(("layers", name) for name in matrix.layers), *((("models",),) if matrix.models else ())]
    for location in wanted:
        if ".".join(location) not in matrix.claims:
            name = ".".join(location)
            yield location, f"nothing says where {name} comes from", f"add claims.{name} with source and confidence"
    for name, claim in matrix.claims.items():
        yield from _sourced(("claims", name, "source"), claim.source)
        if tuple(name.split(".")) not in wanted:
            yield ("claims", name), *_unknown("table", name, (".".join(location) for location in wanted))
    for name, feature in matrix.features.items():
        if name not in FEATURES:
            yield ("features", name), *_unknown("feature", name, FEATURES)
        for lane, source in feature.sources.items():
            yield from _sourced(("features", name, "sources", lane), source)
    for name in FEATURES if matrix.features else ():
        if name not in matrix.features:
            yield ("features",), f"the feature '{name}' is missing", "say what it means, and where each lane's claims come from"


def _extras(matrix: Matrix) -> Found:
    from fl.extras import KEYS

    for name, extra in matrix.extras.items():
        here: Location = ("extras", name)
        if not _EXTRA.fullmatch(name):
            yield here, f"'{name}' is not the name of an extra", "write lower-case letters, digits and hyphens"
        if not extra.packages or not extra.asked_by:
            yield here, "an extra needs packages, and keys that ask for it", ""
        for package, version in extra.packages.items():
            yield from _exact((*here, "packages", package), version)
        for key in extra.asked_by:
            if key not in KEYS:
                yield (*here, "asked_by", key), f"no extra is asked for by '{key}'", f"write one of {', '.join(KEYS)}"
        for package, how in extra.loosened.items():
            yield from _sourced((*here, "loosened", package), how)
        yield from _sourced((*here, "source"), extra.source)


def _driver_tables(runtime: str, table: Drivers) -> Found:
    """Chips that not every driver knows, and the package that lifts a runtime over an old driver."""
    for name, chip in table.chips.items():
        here: Location = ("drivers", runtime, "chips", name)
        if not _CHIP.fullmatch(name):
            yield here, f"'{name}' is not a chip's name", "write e.g. sm_90, gfx942, ascend910b, xe-hpc"
        yield from _exact((*here, "runtime"), chip.runtime)
        if driver_key(chip.driver) is None:
            yield (*here, "driver"), f"'{chip.driver}' is not a driver version", "write numbers with dots, e.g. 580.65.06"
    if table.forward is not None:
        yield from _sourced(("drivers", runtime, "forward", "source"), table.forward.source)


def _rule_form(number: int, one: Incompatibility) -> Found:
    here: Location = ("incompatibilities", number)
    for key, table in (("when", one.when), ("requires", one.requires)):
        for name, specifier in table.items():
            if specifier is not None and not is_specifier(specifier):
                yield (*here, key, name), f"'{specifier}' is not a version specifier", "write e.g. >=2.6,<2.15 and || between alternatives"
    if not (one.requires or one.needs or one.same or one.same_minor or one.without_arches or one.vllm_last):
        yield here, f"the rule {one.id} forbids nothing", "give it requires, needs, same, same_minor, without_arches or vllm_last"
    yield from _sourced((*here, "source"), one.source)


def _models(matrix: Matrix, one: Incompatibility) -> Found:
    """The table of models against what an engine is known to have dropped."""
    for name, last in one.vllm_last.items():
        for family, models in matrix.models.items():
            said = models.types[name].vllm_last if name in models.types else last
            if said != last:
                message = f"the last vLLM that has {name} is {last}, this says {said}: {one.why} ({one.source})"
                yield ("models", family, "types", name), message, f"vllm_last: {last}, see incompatibilities.{one.id}"


def _unknown(kind: str, name: str, known: Iterable[str]) -> tuple[str, str]:
    """Message and remedy for a name that is not known."""
    names = list(known)
    return f"unknown {kind} '{name}'.{nearest(name, names)}", f"known: {', '.join(names)}"


def _exact(path: Location, version: str) -> Found:
    if not is_version(version):
        yield path, f"'{version}' is not a version", "pin one exact version, e.g. 2.14.0"


def _sourced(path: Location, source: str) -> Found:
    if not source.strip():
        yield path, "the source is empty", "say where this was read, or when it was run"


def _names(matrix: Matrix, stack: Stack) -> Found:
    """The id, and what a row calls by name."""
    if stack.layer not in matrix.layers:
        yield ("layer",), *_unknown("layer", stack.layer, matrix.layers)
    if stack.index is not None and stack.index not in matrix.indexes:
        yield ("index",), *_unknown("index", stack.index, matrix.indexes)
    if stack.index is not None and stack.torch_from == "base":
        yield ("index",), "torch comes from the base image, and an index is named too", "drop index, or say torch_from: index"
    for name in stack.runtime:
        if name not in matrix.drivers:
            yield ("runtime", name), *_unknown("runtime", name, matrix.drivers)
    torch = stack.train.get("torch")
    if torch is not None and is_version(torch):
        runtime = next((f"{name}{''.join(release.split('.')[:2])}" for name, release in stack.runtime.items()), stack.lane)
        release = "".join(str(part) for part in Version(torch).release[:2])
        if not re.fullmatch(rf"{re.escape(runtime)}-torch{release}(-[a-z0-9]+)*", stack.id):
            message = f"the id '{stack.id}' does not name runtime and torch"
            yield ("id",), message, f"call it {runtime}-torch{release}, with one word more where two rows would share it"


def _base(matrix: Matrix, stack: Stack) -> Found:
    """The Python of a base image: what its tag says, else what its system brings. A matrix without a table of systems says nothing."""
    flavors: tuple[Flavor, ...] = ("train", "serve") if stack.serve_base is not None else ("train",)
    for flavor, key in zip(flavors, ("base", "serve_base"), strict=False):
        seen = stack.of(flavor)
        image = seen.base.image
        system, tag = matrix.system(seen), _TAG_PYTHON.search(image)
        have = tag[1] if tag else system.python if system else stack.python
        if system is None and matrix.systems:
            known = ", ".join(matrix.systems)
            yield (key, "image"), f"the system of {image} is not recorded", f"add it to systems, which has {known}"
        if have != stack.python:
            yield ("python",), f"the base {image} has Python {have}, the row says {stack.python}", f'write "{have}", or another base'
        if seen.base.digest is not None and not _DIGEST.fullmatch(seen.base.digest):
            yield (key, "digest"), f"'{seen.base.digest}' is not a digest", "write sha256: and 64 hex digits, or null"
    if stack.serve_base is not None and not any(stack.serve.values()):
        yield ("serve_base",), "a serving image is named, but not what it serves with", "say in serve which engine and torch it holds"


def _index(matrix: Matrix, stack: Stack) -> Found:
    """One release of torch is another build on every index, and its METADATA does not tell which: the row must."""
    entry = matrix.indexes.get(stack.index or "")
    variant = (stack.train.get("torch") or "").partition("+")[2]
    hidden = "one release of torch is another build on every index, and its METADATA does not tell"
    if variant and entry is None and stack.torch_from == "index":
        yield ("train", "torch"), f"the ordinary index has no +{variant}: {hidden}", "name the index that has it"
    elif entry is not None and variant and entry.variant not in (None, variant):
        yield ("train", "torch"), f"the builds of {stack.index} are +{entry.variant}, not +{variant}: {hidden}", "another index or version"
    for name, release in entry.runtime.items() if entry is not None else ():
        have = stack.runtime.get(name, "none")
        if have != release and not have.startswith(f"{release}."):
            message = f"{stack.index} has torch for {name} {release}, the row says {have}: {hidden}"
            yield ("runtime", name) if name in stack.runtime else ("runtime",), message, f'write {name}: "{release}", or another index'


def _versions(matrix: Matrix, stack: Stack) -> Found:
    for key, table in (("train", stack.train), ("serve", stack.serve), ("runtime", stack.runtime)):
        for name, version in table.items():
            if version is not None:
                yield from _exact((key, name), version)
    for name in _TRAINER:
        if stack.train.get(name) is None:
            yield ("train",), f"{name} is not pinned, and the shared trainer needs it", f'add {name}: "…"'
    for key in ("exclude_newer", "serve_exclude_newer"):
        day = getattr(stack, key)
        if day is not None and not _DAY.fullmatch(day):
            yield (key,), f"'{day}' is not a day", 'write e.g. "2026-11-22"'
    if not _PYTHON.fullmatch(stack.python):
        yield ("python",), f"'{stack.python}' is not a Python release", 'write e.g. "3.13"'


def _hosts(matrix: Matrix, stack: Stack) -> Found:
    hosts = stack.hosts
    if not hosts.platforms:
        yield ("hosts", "platforms"), "no platform", f"known: {', '.join(_PLATFORMS)}"
    for platform in (*hosts.platforms, *hosts.arches_on):
        if platform not in _PLATFORMS:
            yield ("hosts",), *_unknown("platform", platform, _PLATFORMS)
        elif platform not in hosts.platforms:
            yield ("hosts", "arches_on"), f"{platform} is not one of this row's platforms", "add it to platforms, or drop it"
    for chip in (*hosts.arches, *(chip for chips in hosts.arches_on.values() for chip in chips)):
        if not _CHIP.fullmatch(chip):
            yield ("hosts",), f"'{chip}' is not a chip's name", "write e.g. sm_90, gfx942, ascend910b, xe-hpc"
    if stack.runtime and not hosts.arches:
        yield ("hosts",), "a row with a runtime must say which chips it has code for", "add arches"


def _drivers(matrix: Matrix, stack: Stack) -> Found:
    """The row's driver range against what the runtime allows."""
    known = {table.driver for table in matrix.drivers.values()}
    for name, specifier in stack.hosts.driver.items():
        path = ("hosts", "driver", name)
        if name not in known:
            yield path, *_unknown("driver", name, sorted(known))
        try:
            driver_clauses(specifier)
        except ValueError as error:
            yield path, str(error), 'write e.g. ">=580.65.06"'
            return
    for runtime, release in stack.runtime.items():
        table = matrix.drivers.get(runtime)
        if table is None or not table.floors or table.is_unrecorded(release):
            continue
        floor = table.floor(release)
        if floor is None:
            message = f"no driver floor is recorded for {runtime} {release}"
            yield ("runtime", runtime), message, f"add it to drivers.{runtime}.floors, with its source"
            continue
        bounds = [bound for operator, bound in driver_clauses(stack.hosts.driver.get(table.driver, "<0")) if operator in (">=", ">", "==")]
        if not bounds or any(driver_below(bound, floor) for bound in bounds):
            message = f"{runtime} {release} needs {table.title} >= {floor}, this row allows {stack.hosts.driver.get(table.driver, 'any')}"
            yield ("hosts", "driver", table.driver), f"{message} ({table.source})", f'write {table.driver}: ">={floor}"'


def _features(matrix: Matrix, stack: Stack) -> Found:
    for name, value in stack.features.items():
        if name not in FEATURES:
            yield ("features", name), *_unknown("feature", name, FEATURES)
        elif isinstance(value, str) != (name == "flash_attention") and value is not None:
            remedy = "write true, false or null; flash_attention: none, wheel or kernels"
            yield ("features", name), f"'{value}' is not a value of {name}", remedy
        elif isinstance(value, str) and value not in _ATTENTION:
            yield ("features", name), *_unknown("kind of attention", value, _ATTENTION)
        behind = "flash-attn" if value == "wheel" else BEHIND[name][0] if value is True and name in BEHIND else None
        if value is not None and name in matrix.features and matrix.feature_source(stack, name) is None:
            remedy = f"add sources.{name}, or features.{name}.sources.{stack.lane}"
            yield ("features", name), f"nothing says where '{name}' comes from", remedy
        if behind is not None and stack.train.get(behind) is None:
            yield ("features", name), f"{name} needs {behind}, which this row does not pin", f"pin {behind}, or say {name}: false"
    for name in FEATURES:
        if name not in stack.features:
            yield ("features",), f"the feature '{name}' is missing", "say true, false or null (nobody has checked)"


def _claims(matrix: Matrix, stack: Stack) -> Found:
    for key, source in stack.sources.items():
        yield from _sourced(("sources", key), source)
    if stack.confidence == "verified" and "pins" not in stack.sources:
        yield ("confidence",), "verified, but sources has no pins", "say in sources.pins when the lock was installed and what was trained"
    elif stack.confidence in ("documented", "inferred") and not stack.sources:
        yield ("confidence",), f"{stack.confidence}, but there are no sources", "say where each claim comes from, or confidence: unknown"
    if stack.status == "stable" and stack.confidence != "verified":
        message = f"stable needs proof, and the confidence is {stack.confidence}"
        yield ("status",), message, "status: lts or edge until a model was trained with its lock"


def _pins(matrix: Matrix, stack: Stack) -> Found:
    """Both flavors against every recorded incompatibility."""
    flavors: tuple[Flavor, ...] = ("train", "serve")
    for flavor in flavors:
        own = getattr(stack, flavor)
        if stack.layer in matrix.layers and own:
            for name, message, rule in matrix_rules.findings(matrix, stack.of(flavor), flavor, matrix.packages(stack, flavor)):
                yield (flavor, name) if name in own else (flavor,), message, f"see incompatibilities.{rule}"
