"""What the docker and podman commands say when they cannot start a container, as our errors. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fl.errors import EngineError, FlError, HardwareError, ImageError, RecipeError
from fl.plan import Plan

if TYPE_CHECKING:
    from fl.causes import Cause


class NameInUse(EngineError):
    """The container of that name is somebody else's."""


def explain_start(said: str, plan: Plan) -> FlError:
    """The error behind a failed `run`."""
    text = " ".join(said.split())
    shown = _message(said)
    image = plan.image.reference or "the image"
    engine = plan.engine
    for pattern, build in _CAUSES:
        if (match := re.search(pattern, text, re.I)) is not None:
            return build(match, shown, image, engine)
    if (cause := _cause(text)) is not None:
        return cause.error(f"{engine} could not start the container: {shown}\ncause: {cause.cause}", cause.cure)
    return EngineError(f"{engine} could not start the container: {shown}", f"fl run --print-command … shows the command; {engine} info")


def explain_pull(said: str, reference: str, engine: str) -> ImageError:
    """The error behind a failed pull."""
    text = " ".join(said.split())
    if re.search(r"no space left|disk quota", text, re.I):
        return ImageError(f"The disk of {engine} is full; {reference} was not pulled.", f"{engine} system df\n{engine} system prune")
    if re.search(r"manifest.*(unknown|not found)|not found: manifest|name unknown|repository .*not found|does not exist", text, re.I):
        return ImageError(f"The registry has no image {reference}.", "fl images list shows the references; fl images build makes one here")
    if re.search(r"unauthori[sz]ed|denied|no basic auth|authentication required|forbidden", text, re.I):
        return ImageError(f"The registry refuses {reference}: {_message(said)}", f"{engine} login {reference.split('/')[0]}")
    if re.search(r"digest|verification failed|filesystem layer", text, re.I):
        return ImageError(f"{reference} arrived damaged: {_message(said)}", "pull again; if it stays, the copy in the registry is broken")
    if (cause := _cause(text)) is not None:
        return ImageError(f"{reference} cannot be pulled: {_message(said)}\ncause: {cause.cause}", cause.cure)
    return ImageError(
        f"{reference} cannot be pulled: {_message(said)}",
        "fl images build makes the image here; fl run --engine host needs none; HTTPS_PROXY of the daemon may be missing",
    )


def _cause(text: str) -> Cause | None:
    """A known text; the table is loaded when something failed."""
    from fl.causes import explain

    return explain(text)


def _message(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("See '")]
    return re.sub(r"^(docker|Error): (Error response from daemon: )?", "", lines[-1]) if lines else "it said nothing"


def _missing_image(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return ImageError(
        f"There is no image {image} here, and it could not be fetched: {shown}",
        f"fl images build makes it; {engine} pull {image}; fl run --engine host needs none",
    )


def _no_gpu(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return EngineError(
        f"{engine} has nothing that passes NVIDIA GPUs into containers (nvidia-container-toolkit): {shown}",
        "install nvidia-container-toolkit, then: sudo nvidia-ctk runtime configure --runtime=docker\n"
        "sudo systemctl restart docker\nfl run --engine host",
    )


def _old_driver(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return HardwareError(f"The driver is too old for this image: {shown}", "fl matrix explain shows which stack fits this driver")


def _cdi(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    remedy = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    if engine == "podman":
        remedy += "\ngrep cdiVersion /etc/cdi/* /var/run/cdi/*   podman 4.3 reads specs up to 0.5.0"
    return EngineError(f"{engine} knows no such device: {shown}", remedy)


def _gone(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    """The plan's own mounts are looked at before: this one comes from a CDI spec that is older than the driver."""
    return EngineError(
        f"A CDI spec names {match[1]}, which is gone: the driver was changed since",
        "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    )


def _device(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return HardwareError(f"A device of the plan is not there: {shown}", "fl hw shows the devices that this machine has now")


def _mount(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return RecipeError(f"A path of the plan is not there for {engine}: {shown}", "ls -ld shows it; a daemon elsewhere needs --engine host")


def _name(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return NameInUse(f"A container of this name is there already: {shown}", f"fl ps -a; {engine} rm -f the container")


def _rlimit(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return EngineError(
        f"{engine} may not raise a limit that the plan asks for (type {match[1]}; 7 nofile, 8 memlock): {shown}",
        'default_ulimits = ["nofile=…"] in ~/.config/containers/containers.conf; fl run --engine host'
        if engine == "podman"
        else "raise LimitMEMLOCK and LimitNOFILE of the daemon's unit; fl run --engine host",
    )


def _disk(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return EngineError(f"The disk of {engine} is full: {shown}", f"{engine} system df; {engine} system prune")


def _daemon(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return EngineError(f"The {engine} daemon went away: {shown}", "sudo systemctl start docker; fl run --engine host")


def _program(match: re.Match[str], shown: str, image: str, engine: str) -> FlError:
    return ImageError(f"The image {image} has not what the plan starts: {shown}", "--image needs an image of fl: fl images list")


_CAUSES = (
    (r"no space left on device|disk quota exceeded", _disk),
    (r"cannot connect to the docker daemon|permission denied while trying to connect|connection refused|error during connect", _daemon),
    (r"could not select device driver|nvidia-container-(cli|runtime-hook).*not found", _no_gpu),
    (r"unsatisfied condition: (cuda|driver)", _old_driver),
    (r"CDI device|unresolvable", _cdi),
    (r'error mounting "([^"]+)" to rootfs at [^:]+: (?:stat|open) [^:]+: no such file', _gone),
    (r"setting rlimits?.*type (\d+)", _rlimit),
    (r"bind source path does not exist|statfs .*no such file|mount source", _mount),
    (r"gathering device information|stat /dev/\S+: no such file|adding custom device", _device),
    (r"(container )?name \S+ is already in use|is already in use by", _name),
    (r"no such image|unable to find image|image not known|manifest unknown|pull access denied|initializing source", _missing_image),
    (r"executable file .*not found|exec: .*no such file|stat .*no such file or directory", _program),
)
