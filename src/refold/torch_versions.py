"""What differs between the versions of torch that refold runs on: asked here and nowhere else."""

from __future__ import annotations

import inspect
import re
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_VERSION = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))

CHECKS_STORAGES = _VERSION >= (2, 13)
"""Whether `torch.load` refuses a tensor that is longer than what the archive stores of it.

Older ones fill it with whatever lies behind in memory.
"""

EXTRA_MEMBER = re.compile(r"/extra/|^extra_files/")
"""Where a .pt2 archive keeps what its writer adds; the second until torch 2.7."""

PROGRAM_MEMBERS = ("/archive_format", "/models/model.json", "serialized_exported_program.json")
"""What the names of members of a .pt2 archive end in; the last until torch 2.7."""


class DispatchMode(TorchDispatchMode):
    """A mode that sees every operator, without loading torch's compiler for that.

    Newer versions load it at the first operator, about a second, to keep it out of the mode's own
    code: it never gets there, as nothing is compiled while a mode of this kind is on.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def default_device() -> torch.device:
    """Return where new tensors are made, also where torch 2.6 does not know."""
    return torch.empty(0).device


def reset_default_device() -> None:
    """Take a default device back, so that it can be asked for: torch 2.6 fails then by itself."""
    torch.set_default_device(None)
    try:
        torch.get_default_device()
    except AttributeError:
        del torch._GLOBAL_DEVICE_CONTEXT.device_context


def module_of(program: torch.export.ExportedProgram) -> nn.Module:
    """Return an exported program as a module that does not check its inputs, where torch does."""
    make: Any = program.module
    known = inspect.signature(make).parameters
    return make(check_guards=False) if "check_guards" in known else make()


def drop_unreadable_guards(program: torch.export.ExportedProgram) -> None:
    """Drop checks of sizes that torch wrote in names of its own, which a call does not know.

    It does so for what `**kwargs` takes. Older versions write no checks.
    """
    guards: list[str] | None = getattr(program, "_guards_code", None)
    if guards:
        program._guards_code = [guard for guard in guards if "L[" not in guard]


def hooks_of_saved_tensors() -> object:
    """Return the hooks on tensors saved for the backward pass, None without any.

    Gradient checkpointing sets such hooks. Where torch does not tell them, the answer is None.
    """
    ask: Any = getattr(cast(Any, torch._C)._autograd, "_top_saved_tensors_default_hooks", None)
    return None if ask is None else ask(False)
