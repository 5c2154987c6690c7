"""BuildKit's plain progress, read as it comes: which step runs, how long each took, and why the last one failed. Pure but for `View`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final

from fl import ui
from fl.errors import ImageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_NOISE: Final = re.compile(
    r"#0 |#\d+ (sha256:|transferring|extracting|resolve |writing image \S+$|\[internal\]|\[context |\.\.\.$)|#\d+ \d+\.\d+( *$|  [+-] )|^$"
)
"""Progress lines that tell nobody anything: bytes, the context, and each package that was installed."""
OPENING: Final = re.compile(r"touch /tmp/begin; +|if \[ -f (?P<file>/mnt/site|/run/secrets/index) \]; then \. (?P=file); fi; +")
"""What every step of ours begins with."""
_LINE: Final = re.compile(r"#(?P<number>\d+) (?P<rest>.*)")
_DONE: Final = re.compile(r"DONE (\d+\.\d+)s")
_STAGE: Final = re.compile(r"\[(?P<stage>[\w.-]+) +(?P<number>\d+)/(?P<total>\d+)\] (?P<what>.*)")
_PLUMBING: Final = re.compile(r"--mount=\S+ +")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_WIDTH: Final = 160
_SLOW: Final = 1.0
"""Seconds: a step that took less is not told."""
_MAKES: Final = ("RUN", "COPY", "ADD", "WORKDIR")


@dataclass(slots=True)
class Step:
    """One step as the builder numbers it."""

    name: str
    seconds: float | None = None
    """None while it runs, and where it failed."""
    cached: bool = False


class Log:
    """Everything that was said so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: dict[int, Step] = {}

    def add(self, line: str) -> str | None:
        """Takes a line; gives what is worth showing of it."""
        text = _COLOURS.sub("", line.rstrip("\n"))
        self.lines.append(text)
        match = _LINE.match(text)
        if match is None:
            return short(text) if not _NOISE.match(text) else None
        number, rest = int(match["number"]), match["rest"]
        if number not in self.steps:
            self.steps[number] = Step(rest)
        step = self.steps[number]
        if (done := _DONE.fullmatch(rest)) is not None:
            step.seconds = float(done[1])
            return f"#{number} done in {step.seconds:.1f} s" if step.seconds >= _SLOW and _STAGE.match(step.name) else None
        if rest == "CACHED":
            step.cached, step.seconds = True, 0.0
            return f"#{number} is cached" if _STAGE.match(step.name) else None
        return short(text) if not _NOISE.match(text) else None

    def layers(self, stages: Sequence[str]) -> list[Step]:
        """The steps that make layers, in the order of the Dockerfile; `stages` are its stages in that order."""
        found = []
        for step in self.steps.values():
            match = _STAGE.match(step.name)
            if match is not None and match["stage"] in stages and match["what"].startswith(_MAKES):
                found.append((stages.index(match["stage"]), int(match["number"]), step))
        return [step for _, _, step in sorted(found, key=lambda one: one[:2])]

    def counted(self) -> tuple[int, int, str]:
        """(finished, known so far, what runs) of the Dockerfile's steps."""
        done, totals, now = 0, dict[str, int](), ""
        for step in self.steps.values():
            if (match := _STAGE.match(step.name)) is not None:
                totals[match["stage"]] = int(match["total"])
                done += step.seconds is not None
                now = step.name if step.seconds is None else now
        return done, sum(totals.values()), short(now)


def short(line: str) -> str:
    """A step without its mounts and our opening, and not longer than a line of a log."""
    text = OPENING.sub("", _PLUMBING.sub("", line.rstrip()))
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def stages(dockerfile: str) -> list[str]:
    """Names of a Dockerfile's stages, in order."""
    return re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.M)


def failure(lines: Sequence[str]) -> str:
    """The failing step and its last lines out of plain progress: BuildKit repeats them between two rules at the end."""
    block = _block(lines)
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = [_COLOURS.sub("", line) for line in errors[-1:]]
    return "\n".join([short(line) for line in block[:1]] + block[1:][-12:] + [line[:_WIDTH] for line in last])


def _block(lines: Sequence[str]) -> list[str]:
    rules = [number for number, line in enumerate(lines) if line.rstrip() == "------"]
    if len(rules) >= 2:
        return [_COLOURS.sub("", line.rstrip()) for line in lines[rules[-2] + 1 : rules[-1]]]
    return [_COLOURS.sub("", line.rstrip()) for line in lines if not _NOISE.match(line) and not re.match(r"#\d+ (DONE|CACHED)", line)][-12:]


class Passing(ImageError):
    """A failure that may be gone at the next try: what was downloaded is kept by the builder."""


_FULL: Final = re.compile(r"no space left on device|disk quota exceeded", re.I)
_BASE: Final = re.compile(r"failed to resolve source metadata|failed to do request|pull access denied|manifest unknown")
_NETWORK: Final = re.compile(
    r"failed to fetch|error sending request|connection (reset|refused|closed)|timed? ?out|temporary failure|TLS handshake|unexpected EOF"
    r"|\b50[234]\b|dns error|network is unreachable",
    re.I,
)
_PYTHON: Final = re.compile(r"No interpreter found for Python (\S+)|Python (3\.\d+)\.\S+ \(main")
_VENV: Final = re.compile(r'^(?:#\d+ )?ERROR: .*uv venv --python (\d\.\d+)', re.M)
"""The error of the step that makes the environment. BuildKit loses the last lines of a step that ends at once, never this one."""
_NO_BASE: Final = (
    "docker login\nmirrors: {registry: …} in the settings, where that registry cannot be reached"
    "\na base image that is there: fl images build STACK --base REF"
)
_REMEDIES: Final = (
    (r"Hash mismatch", "the package index serves another file than the one that was locked"),
    (
        r"there (is|are) no versions? of|was not found in the|Because .* has no wheels",
        "a folder with the wheels that no index has: fl images build STACK --find-links DIR",
    ),
    (
        r"UnknownIssuer|invalid peer certificate|certificate verify failed|CERTIFICATE_VERIFY",
        "the site's certificates: pip config set global.cert FILE, or fl images build STACK --ca FILE",
    ),
    (
        r"layer does not exist|error creating overlay mount|missing parent .* (snapshot|layer)",
        "the builder's cache names layers that were removed since: fl images build STACK --no-cache",
    ),
)


def explain(lines: Sequence[str], code: int, base: str, lacks_python: Callable[[str, str], bool]) -> ImageError:
    """The error behind a failed build: cause and cure. `lacks_python` is asked where the log is silent on why no environment came to be."""
    shown, text = failure(lines), "\n".join(lines)
    block = "\n".join(_block(lines))
    refused = re.search(r"(Cache export|Attestation)s? (is|are) not supported for the (\S+) driver", text)
    if refused:
        what = "keeps no cache outside itself (--cache-to)" if refused[1].startswith("Cache") else "makes no attestations (--attest)"
        return ImageError(
            f"docker's {refused[3]} builder {what}: that takes the containerd image store, or a builder of its own",
            "docker buildx create --use --driver docker-container\n--cache-to type=inline   works with every builder",
        )
    if _FULL.search(text):
        return ImageError(f"the disk of the docker daemon is full\n{shown}", "docker builder prune -f\ndocker system df")
    if (found := _PYTHON.search(block)) is not None:
        return _no_python(f"has no Python {found[1]}, which the row names" if found[1] else f"has Python {found[2]}", base, shown)
    if _BASE.search(text):
        return ImageError(_failed(code, shown), _NO_BASE)
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, block):
            return ImageError(_failed(code, shown), remedy)
    if (step := _VENV.search(text)) is not None and lacks_python(base, step[1]):
        return _no_python(f"has no Python {step[1]}, which the row names", base, shown)
    if _NETWORK.search(block):
        return Passing(_failed(code, shown), "try again: what was downloaded is kept")
    return ImageError(_failed(code, shown), "the lines above say what failed")


def _no_python(said: str, base: str, shown: str) -> ImageError:
    return ImageError(f"the base {base} {said}\n{shown}", "a base image with that Python: fl images build STACK --base REF")


def _failed(code: int, shown: str) -> str:
    return f"the build failed (docker buildx build, exit {code})\n{shown}"


class View:
    """The log on the screen: a bar on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self.log = Log()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> View:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            now = TextColumn("{task.fields[now]}")
            columns = (TextColumn("  build"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), now)
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("build", total=None, now="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, line: str) -> None:
        """Takes a line and shows what it says."""
        shown = self.log.add(line)
        if self._bar is not None and self._task is not None:
            from rich.markup import escape

            done, total, now = self.log.counted()
            self._bar.update(self._task, completed=done, total=total or None, now=escape(ui.clean(now)))
        elif shown is not None:
            ui.say("  " + ui.clean(shown))
