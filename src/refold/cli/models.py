"""`refold models`: the names that MODEL may be."""

from __future__ import annotations

import fnmatch
from typing import Annotated

import typer

from refold.cli import options
from refold.cli.console import print_json, say
from refold.cli.names import suggest
from refold.errors import InputError, MissingDependencyError


def models(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Shell pattern, such as 'timm:*vgg*'.")
    ] = "*",
    as_json: options.Json = False,
) -> None:
    """List the networks that can be named, one a line."""
    known = zoo_names()
    if not known:
        raise MissingDependencyError("no zoo is installed: run pip install 'refold[models]'")
    matched = [name for name in known if _matches(name, pattern)]
    if not matched:
        raise InputError(f"no network matches {pattern!r}{suggest(pattern, known)}")
    if as_json:
        print_json(matched)
    else:
        say("\n".join(matched))


def _matches(name: str, pattern: str) -> bool:
    """Match the whole name, or what follows the zoo's prefix."""
    bare = name.partition(":")[2]
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(bare, pattern)


def zoo_names() -> list[str]:
    """Return every name of the installed zoos, prefixed."""
    names: list[str] = []
    try:
        import timm

        names += [f"timm:{name}" for name in timm.list_models()]
    except ImportError:
        pass  # a zoo that is not installed has no names to offer
    try:
        import torchvision.models

        names += [f"torchvision:{name}" for name in torchvision.models.list_models()]
    except ImportError:
        pass
    return names
