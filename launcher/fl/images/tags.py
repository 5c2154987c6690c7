"""Names of images."""

from __future__ import annotations

from fl import __version__


def repository(flavor: str, registry: str | None = None) -> str:
    """`REGISTRY/fl-FLAVOR`, without the first part where no registry is configured."""
    return f"{registry.rstrip('/')}/fl-{flavor}" if registry else f"fl-{flavor}"


def reference(
    stack_id: str, flavor: str = "train", version: str = __version__, registry: str | None = None, variant: str | None = None
) -> str:
    """The name of one release's image: this is what plans and locks of projects name. `variant`: of an image that holds more."""
    return f"{repository(flavor, registry)}:{stack_id}-{version}" + (f"-{variant}" if variant else "")


def moving(stack_id: str, flavor: str = "train", registry: str | None = None, variant: str | None = None) -> str:
    """The name that moves on to each new release."""
    return f"{repository(flavor, registry)}:{stack_id}" + (f"-{variant}" if variant else "")


def of_platform(name: str, platform: str) -> str:
    """The name of one platform's image where an index of several stands under `name`: `…-linux-arm64`."""
    return f"{name}-{platform.replace('/', '-')}"
