"""What apptainer says when it cannot make or start a container, as our errors. Pure."""

from __future__ import annotations

import re

from fl.errors import EngineError, FlError, ImageError, RecipeError
from fl.plan import Plan

FAILED = 255
"""apptainer's exit code for its own failures; a program may have it too."""
_LAST = 4
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def plain(said: str) -> str:
    """Without colours and outer blanks."""
    return _COLOUR.sub("", said).strip()


def fatal(said: str) -> str | None:
    """Its last word, where that says that it gave up; None: it did not. Lines of a command that it called may follow."""
    lines = [line.strip() for line in _COLOUR.sub("", said).splitlines() if line.strip()][-_LAST:]
    for at in reversed(range(len(lines))):
        if (match := re.match(r"FATAL: {3}(.*)", lines[at])) is not None:
            return " ".join((match[1], *lines[at + 1 :]))
    return None


def explain_start(said: str, plan: Plan) -> FlError:
    """The error behind a failed start."""
    image = plan.image.reference or "the image"
    if (match := re.search(r"mount source (.+?) doesn't exist", said)) is not None:
        return RecipeError(f"A path of the plan is not there for apptainer: {match[1]}", f"ls -ld {match[1]}")
    if re.search(r"executable file not found|^stat \S+: no such file|exec .* failed", said):
        return ImageError(f"The image {image} has not what the plan starts: {said}", "--image needs an image of fl: fl images list")
    if re.search(r"network namespace|requires? root|CNI|network none", said, re.I):
        return EngineError(
            f"apptainer may not start a container without a network here: {said}",
            "let it share this machine's network: fl: {network: host} in the recipe",
        )
    if re.search(r"fuse|squashfs|loop device|could not mount image|while mounting image|while extracting", said, re.I):
        return EngineError(
            f"apptainer cannot mount the image file: {said}",
            "a user without rights needs squashfuse and /dev/fuse\n"
            f"or a folder instead of a file: apptainer build --sandbox FOLDER {plan.image.file}, then --image FOLDER",
        )
    if re.search(r"user namespace|unprivileged|clone|newuidmap", said, re.I):
        return EngineError(
            f"apptainer may not make a container as this user: {said}",
            "sysctl user.max_user_namespaces shows whether user namespaces are allowed; or the package apptainer-suid",
        )
    if re.search(r"could not open image|failed to retrieve path|image format not recognized", said):
        return ImageError(f"The image {image} cannot be opened: {said}", f"rm {plan.image.file}; the next run makes it again")
    if re.search(r"CDI|unresolvable", said):
        return EngineError(f"apptainer knows no such device: {said}", "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
    return EngineError(
        f"apptainer could not start the container: {said}", "fl run --print-command … shows the command; fl run --engine host"
    )


def explain_build(said: str, reference: str, folder: str) -> FlError:
    """The error behind a failed conversion or download."""
    text, shown = " ".join(_COLOUR.sub("", said).split()), fatal(said) or "it said nothing"
    if re.search(r"no space left|disk quota", text, re.I):
        return ImageError(
            f"{reference} does not fit on the disk: {shown}",
            f"df -h {folder}\nAPPTAINER_TMPDIR names a folder with more room to unpack in, XDG_CACHE_HOME one for the image",
        )
    if re.search(r"manifest.*(unknown|not found)|name unknown|does not exist", text, re.I):
        return ImageError(f"The registry has no image {reference}.", "fl images list shows the references; fl images build makes one here")
    if re.search(r"unauthori[sz]ed|denied|authentication required|forbidden", text, re.I):
        return ImageError(
            f"The registry refuses {reference}: {shown}", f"apptainer registry login --username NAME docker://{reference.split('/')[0]}"
        )
    return ImageError(
        f"{reference} cannot be made into an image for apptainer: {shown}",
        "fl images build makes the image in docker, which apptainer takes it from; fl run --engine host needs none",
    )
