"""`refold models`: the names that MODEL accepts, and the size of our own networks."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from refold.cli import options
from refold.cli.console import count, print_json, say, spinner
from refold.errors import InputError, MissingDependencyError
from refold.sources.names import suggest
from refold.sources.networks import own_names

_COLUMNS = ("network", "image", "parameters", "multiply-adds")


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Shell pattern, such as 'timm:*vgg*'.")
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="List names alone, without counting anything.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """List the networks by name: ours, then those of the zoos.

    With a PATTERN, ours are listed with parameters and multiply-adds (of one image, with 1000
    classes) in the training and the deploy form. Counting all of them takes minutes.
    """
    zoo = zoo_names()
    known = [*own_names(), *zoo]
    matched = known if pattern is None else [name for name in known if _matches(name, pattern)]
    if pattern is not None and not matched:
        raise InputError(f"no network matches {pattern!r}{suggest(pattern, known)}")
    ours = [name for name in matched if name not in set(zoo)]
    others = matched[len(ours) :]
    if pattern is None or names:
        print_json(matched) if as_json else say(*matched)
    elif as_json:
        records = [_record(name, f"{at} of {len(ours)}") for at, name in enumerate(ours, 1)]
        print_json([*records, *({"name": name} for name in others)])
    else:
        _say_sizes(ours)
        say(*others)


def _matches(name: str, pattern: str) -> bool:
    """Match the whole name, or what follows the zoo's prefix."""
    bare = name.rpartition(":")[2]
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(bare, pattern)


def zoo_names() -> list[str]:
    """Return every name of the installed zoos, prefixed."""
    names: list[str] = []
    try:
        import timm

        names += [f"timm:{name}" for name in timm.list_models()]
    except ImportError:
        pass  # a zoo that is not installed offers no names
    try:
        import torchvision.models

        names += [f"torchvision:{name}" for name in torchvision.models.list_models()]
    except ImportError:
        pass
    return names


def _say_sizes(names: Sequence[str]) -> None:
    """Print a line for each of our networks as soon as it is counted."""
    width = max(map(len, names), default=0)
    for at, name in enumerate(names, 1):
        record = _record(name, f"{at} of {len(names)}")
        if at == 1:
            say(_line(_COLUMNS, width))
        if "missing" in record:
            say(f"{name:<{width}}  {record['missing']}")
            continue
        train, deploy = record["train"], record["deploy"]
        row = (
            name, "x".join(map(str, record["input_size"])),
            f"{count(train['parameters'])} -> {count(deploy['parameters'])}",
            f"{count(train['macs'])} -> {count(deploy['macs'])}",
        )  # fmt: skip
        say(_line(row, width))


def _line(row: Sequence[str], width: int) -> str:
    name, image, parameters, macs = row
    return f"{name:<{width}}  {image:<11}  {parameters:<18}  {macs}"


def _record(name: str, progress: str) -> dict[str, Any]:
    """Return the size of one of our networks in both forms; it is built without any values."""
    import torch

    import refold
    from refold.cli.subject import stated_size
    from refold.workload import workload_of

    record: dict[str, Any] = {"name": name}
    with spinner(f"{name} ({progress})"), torch.device("meta"):
        for form, deploy in (("train", False), ("deploy", True)):
            try:
                model = refold.create_model(name, deploy=deploy).eval()
            except MissingDependencyError as error:
                return {"name": name, "missing": str(error)}
            record["input_size"] = stated_size(model)
            work = workload_of(model, torch.empty(1, *stated_size(model)))
            record[form] = {"parameters": work.parameters, "macs": work.macs}
    return record
