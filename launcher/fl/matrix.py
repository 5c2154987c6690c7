"""matrix.yaml as values: which versions belong together, for which machines, and how we know."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from fl import paths
from fl.errors import MatrixError, StackError
from fl.hardware import LaneName

Flavor = Literal["train", "serve"]
Status = Literal["stable", "lts", "edge", "retired"]
Confidence = Literal["verified", "documented", "inferred", "unknown"]
Feature = bool | str | None


BEHIND: Final[dict[str, tuple[str, ...]]] = {
    "bnb_4bit": ("bitsandbytes",), "bnb_8bit": ("bitsandbytes", "bnb_4bit"), "deepspeed": ("deepspeed",), "liger": ("liger-kernel",),
}  # fmt: skip
"""Feature → the distribution without which it cannot be true, and what else in a row's sources speaks of it."""


class Row(BaseModel):
    """Base of every part of the matrix: frozen, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hosts(Row):
    """Which machines a stack runs on."""

    platforms: tuple[str, ...]
    """OCI platforms, e.g. `linux/amd64`."""
    arches: tuple[str, ...] = ()
    """Chips that the wheels hold code for; empty for the cpu lane."""
    arches_on: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Platform → chips, where its wheels hold code for others than `arches`."""
    ptx: tuple[str, ...] = ()
    """Chips for which the wheels hold PTX too: the driver translates it for every later chip. Most releases of PyTorch have none."""
    driver: dict[str, str] = Field(default_factory=dict)
    """Driver name → range, e.g. `{nvidia: ">=580.65.06"}`; see `versions.driver_fits`."""

    def arches_of(self, platform: str) -> tuple[str, ...]:
        """The chips of one platform's wheels."""
        return self.arches_on.get(platform, self.arches)


class Base(Row):
    """The image that a stack's Dockerfile starts from."""

    image: str
    digest: str | None = None


class Stack(Row):
    """One row."""

    id: str
    lane: LaneName
    status: Status
    runtime: dict[str, str] = Field(default_factory=dict)
    hosts: Hosts
    python: str
    base: Base
    serve_base: Base | None = None
    """The vendor's serving image, where its engine comes with it: all that `serve` names is in it, and locks leave that alone."""
    layer: str
    torch_from: Literal["index", "base"] = "index"
    """`base`: the vendor's image brings torch, which must survive untouched and is not in the lock."""
    index: str | None = None
    """Key of `indexes`: where the lane's own wheels come from; None: the ordinary package index."""
    exclude_newer: str | None = None
    """The day (`2026-11-22`) from whose beginning on, in UTC, an upload to the index no longer counts: locking again gives the same."""
    serve_exclude_newer: str | None = None
    """The same for the serving image, where it differs: an engine is older than the layer, and breaks on what came long after it."""
    train: dict[str, str | None] = Field(default_factory=dict)
    """Distribution → exact version, beside those of the layer; null: known to be absent."""
    serve: dict[str, str | None] = Field(default_factory=dict)
    features: dict[str, Feature] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)
    confidence: Confidence
    notes: tuple[str, ...] = ()

    def until(self, flavor: Flavor) -> str | None:
        """The day from which on uploads do not count for an image of that flavor."""
        return self.serve_exclude_newer or self.exclude_newer if flavor == "serve" else self.exclude_newer

    def of(self, flavor: Flavor) -> Stack:
        """The row as an image of that flavor sees it: a vendor's serving image brings torch with the engine."""
        if flavor == "train" or self.serve_base is None:
            return self
        return self.model_copy(update={"base": self.serve_base, "torch_from": "base", "index": None})


class System(Row):
    """The operating system of base images: what its wheels may ask for."""

    glibc: str
    python: str
    """The Python that its packages bring; a base image whose tag names another one (`py3.12`) brings that."""
    source: str
    confidence: Confidence


class Index(Row):
    """A wheel index of a vendor."""

    title: str
    url: str
    variant: str | None = None
    """What its torch is called behind the `+`: METADATA of the same release says the same on every index."""
    runtime: dict[str, str] = Field(default_factory=dict)
    """The runtime that its torch is built with, as rows call it."""
    source: str
    confidence: Confidence


class Chip(Row):
    """Since when a chip is known."""

    runtime: str
    """First runtime release whose compilers know it."""
    driver: str
    """No driver older than this one knows it."""


class Forward(Row):
    """A package that lets a newer runtime run on an older driver, and the products that it is allowed on."""

    package: str
    """Name with `{major}` and `{minor}` of the runtime."""
    products: tuple[str, ...]
    """Words of product names."""
    source: str


class Drivers(Row):
    """What a runtime (CUDA, ROCm, CANN) asks of the kernel driver."""

    driver: str
    """Key of `Hardware.drivers`."""
    title: str
    """The driver's name in messages."""
    floors: dict[str, str] = Field(default_factory=dict)
    """Runtime release, or the start of one (`13`), → oldest driver it runs on."""
    unrecorded: tuple[str, ...] = ()
    """Runtime releases, or starts of one, whose floor no document tells: rows name no range, and the choice warns."""
    shipped: dict[str, str] = Field(default_factory=dict)
    """Runtime release → the driver that came with it; newer than the floor."""
    newest: dict[str, str] = Field(default_factory=dict)
    """Runtime release, or the start of one → newest driver that the vendor documents it with; a newer one is only warned of."""
    translates: str | None = None
    """What the driver itself compiles (PTX): for that it must be as new as the one that shipped with the runtime."""
    chips: dict[str, Chip] = Field(default_factory=dict)
    """Chips that not every driver and compiler in use knows."""
    forward: Forward | None = None
    windows: dict[str, str] = Field(default_factory=dict)
    """Driver's release → runtime releases that the vendor documents it with, a range (`6.2-7.0`) or one."""
    modules: dict[str, str] = Field(default_factory=dict)
    """Version of the kernel module, which detection sees → driver's release, where the vendor counts them apart."""
    rules: tuple[str, ...] = ()
    source: str
    confidence: Confidence

    def floor(self, release: str) -> str | None:
        """The oldest driver for a runtime release."""
        return _by_prefix(self.floors, release)

    def is_unrecorded(self, release: str) -> bool:
        """Whether nobody knows the oldest driver for a runtime release."""
        return _by_prefix(dict.fromkeys(self.unrecorded, ""), release) is not None

    def undocumented(self, release: str, module: str) -> str | None:
        """What the vendor documents the module's driver with, where that is a range without this runtime release; else None."""
        from fl.versions import driver_below

        driver = _by_prefix(self.modules, module)
        low, dash, high = self.windows.get(driver or "", "").partition("-")
        minor = ".".join(release.split(".")[:2])
        if not dash or not (driver_below(minor, low) or driver_below(high, minor)):
            return None
        return f"{driver} is documented with {low} to {high}"

    def newest_known(self, release: str) -> str | None:
        """The newest driver that a runtime release is documented with."""
        return _by_prefix(self.newest, release)


def _by_prefix(table: dict[str, str], release: str) -> str | None:
    """The entry with the longest key that a release starts with, part by part."""
    parts = release.split(".")
    keys = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((table[key] for key in keys if key in table), None)


class ModelType(Row):
    """From which versions on a `model_type` is known; null: never yet."""

    transformers: str | None
    vllm: str | None = None
    vllm_last: str | None = None


class Family(Row):
    """Models under one name."""

    sizes: str
    multimodal: bool = False
    inferred: bool = False
    """Which model type its checkpoints have is a conclusion, not read."""
    types: dict[str, ModelType]


class Incompatibility(Row):
    """Versions that do not go together although nothing in their metadata says so, or that no resolver tells apart."""

    id: str
    lanes: tuple[LaneName, ...] = ()
    platforms: tuple[str, ...] = ()
    flavors: tuple[Flavor, ...] = ()
    """The images that the rule is for; none named: all."""
    index: Literal["ordinary", "vendor"] | None = None
    """Whether the rule is for rows that take torch from the ordinary index, or from a vendor's; None: both."""
    when: dict[str, str] = Field(default_factory=dict)
    """Name → specifier. A name is a distribution, `python`, `glibc` (of the base's system), or a runtime: `cuda`, `rocm`, `cann`."""
    requires: dict[str, str | None] = Field(default_factory=dict)
    """Name → specifier that it must satisfy where it is there; null: it must not be there."""
    needs: tuple[str, ...] = ()
    """Distributions that must be there."""
    same: tuple[str, ...] = ()
    """Distributions whose release numbers must be equal."""
    same_minor: tuple[str, ...] = ()
    """Names, those that are there, whose first two release numbers must be equal."""
    vllm_last: dict[str, str] = Field(default_factory=dict)
    """Model type → the last vLLM that has it: the table `models` must say so."""
    without_arches: tuple[str, ...] = ()
    why: str
    source: str


class Claim(Row):
    """Where a whole table, or one of its entries, comes from."""

    source: str
    confidence: Confidence


class FeatureClaim(Row):
    """A feature that rows speak of."""

    title: str
    sources: dict[LaneName, str]
    """Lane → where its rows' claims come from, unless a row says so itself."""
    confidence: Confidence


class Extra(Row):
    """An optional package that no image holds: put beside a stack's own for a recipe that asks for it."""

    title: str
    packages: dict[str, str]
    """Distribution → exact version; what they need comes by the lock."""
    asked_by: dict[str, str]
    """Key of a recipe → values of it that need the extra, as a shell pattern (`galore_*`)."""
    loosened: dict[str, str] = Field(default_factory=dict)
    """Distribution whose version the packages limit without need → how that is known. The stack's own version stays."""
    source: str
    confidence: Confidence


class Matrix(Row):
    """The whole file."""

    schema_version: Literal[1] = Field(alias="schema")
    layers: dict[str, dict[str, str]]
    stacks: tuple[Stack, ...]
    indexes: dict[str, Index] = Field(default_factory=dict)
    extras: dict[str, Extra] = Field(default_factory=dict)
    """Name → optional packages, on every stack where they fit (`images/LANE/locks/extras/`)."""
    systems: dict[str, System] = Field(default_factory=dict)
    """Start or part of a base image's reference (`debian:trixie`, `ubuntu22.04`) → its system."""
    drivers: dict[str, Drivers] = Field(default_factory=dict)
    claims: dict[str, Claim] = Field(default_factory=dict)
    """`models`, or `layers.NAME` → where it comes from: tables whose entries do not each say it."""
    features: dict[str, FeatureClaim] = Field(default_factory=dict)
    models: dict[str, Family] = Field(default_factory=dict)
    incompatibilities: tuple[Incompatibility, ...] = ()
    _text: str = PrivateAttr("")

    @property
    def text(self) -> str:
        """The file as it was read."""
        return self._text

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def stack(self, id: str) -> Stack:  # noqa: A002
        """The row of that id; StackError with the nearest one."""
        for stack in self.stacks:
            if stack.id == id:
                return stack
        near = get_close_matches(id, [s.id for s in self.stacks], 1, 0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise StackError(f"no stack is called '{id}'.{hint}", "fl matrix list")

    def packages(self, stack: Stack, flavor: Flavor = "train") -> dict[str, str]:
        """Distribution → exact version that an image pins by name: the layer and the row's own for training; a serving engine
        brings its own layer. torch is among them also where the base image brings it."""
        own = stack.train if flavor == "train" else stack.serve
        layer = self.layers[stack.layer] if flavor == "train" else {}
        merged: dict[str, str | None] = {**layer, **own}
        return dict(sorted((name, version) for name, version in merged.items() if version is not None))

    def locked(self, stack: Stack, flavor: Flavor = "train") -> dict[str, str]:
        """Those of `packages` that a lock must hold: none of a serving engine that comes with its vendor's image."""
        return {} if flavor == "serve" and stack.serve_base is not None else self.packages(stack, flavor)

    def feature_source(self, stack: Stack, feature: str) -> str | None:
        """Where a row's claim about a feature comes from: what the row says of it, or of the distribution behind it, else the table."""
        table = self.features.get(feature)
        own = (stack.sources.get(name) for name in (feature, *BEHIND.get(feature, ())))
        return next((source for source in own if source), None) or (table.sources.get(stack.lane) if table else None)

    def system(self, stack: Stack) -> System | None:
        """The system of a row's base image, or None where no one is recorded."""
        image = stack.base.image.replace(":", "")
        return next((system for name, system in self.systems.items() if name.replace(":", "") in image), None)

    def model_type(self, name: str) -> ModelType | None:
        """What is known of a `model_type`, or None."""
        return next((family.types[name] for family in self.models.values() if name in family.types), None)


def parse(text: str) -> Any:
    """YAML text as plain values, with libyaml where it is there."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def load(path: Path | None = None) -> Matrix:
    """The matrix of this installation, or of a file. MatrixError names the line of what is broken.

    Only the form is looked at here; `matrix_check.check` looks at what it says.
    """
    import yaml

    path = path or paths.MATRIX
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MatrixError(f"the matrix cannot be read: {path}: {error.strerror}", "install fl again") from error
    except UnicodeDecodeError as error:
        raise MatrixError(f"the matrix is not UTF-8: {path}: byte {error.start}", f"fl matrix check {path}") from error
    try:
        matrix = Matrix.model_validate(parse(text))
    except (yaml.YAMLError, ValidationError) as error:
        from fl.matrix_form import form_findings

        findings = form_findings(text)
        lines = "\n".join(f"  {f.where}: {f.message}" for f in findings) or f"  {error}"
        raise MatrixError(f"the matrix is broken: {path}\n{lines}", f"fl matrix check {path}") from error
    matrix._text = text
    return matrix
