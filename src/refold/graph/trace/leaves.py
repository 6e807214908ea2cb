"""Which modules a trace takes as atomic, and which nodes compute nothing that a fold may see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from refold.graph.calls import is_question, name_of
from refold.graph.trace.frames import Frame, frame_of, handed
from refold.graph.trace.overridden import access_disguise, call_disguise, disguise

NO_FORWARD = "it has no forward"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_CHECKS = {"_assert", "_check", "_check_value", "_check_is_size", "_assert_async", "assert_fn"}
_COMPARISON_NAMES = "eq ne lt le gt ge mod floordiv and_ or_ not_ getattr getitem"
_COMPARISONS = frozenset(_COMPARISON_NAMES.split())
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_layer(module: nn.Module) -> bool:
    """Say whether `module` is one of torch.nn's own layers, and computes what its class says.

    Such a module is atomic in every graph.

    Examples:
        >>> is_layer(nn.ReLU()), is_layer(nn.Sequential())
        (True, False)
    """
    home = type(module).__module__
    if home.startswith("torch.nn.parallel") or isinstance(module, _CONTAINERS):
        return False
    if home == nn.Module.__module__:  # a bare holder of modules, with a generated forward or none
        return False
    return home.startswith(("torch.nn.", "torch.ao.nn.")) and disguise(module) is None


def pinned_reason(module: nn.Module) -> str | None:
    """Return why the content of `module` must not be looked into or replaced, or None.

    Examples:
        >>> pinned_reason(nn.ReLU()) is None
        True
    """
    replaced = call_disguise(module) or access_disguise(module)
    if replaced is not None:
        return replaced
    if has_hooks(module):
        return "it has hooks, which see its own input and output"
    if parametrize.is_parametrized(module):
        return "its parameters are parametrized (computed by other modules at every call)"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return "it is a recurrent or attention layer with a forward of its own"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module"
    if type(module).__module__.startswith("torch.nn.parallel"):
        return "it runs its network on several devices"
    if "_orig_mod" in module._modules:
        return "it is compiled"
    if "_guards_fn" in module._modules:
        return "it is an exported graph with guards on its inputs"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Say whether a call of a module runs more than its forward.

    Examples:
        >>> has_hooks(nn.ReLU())
        False
    """
    return any(map(module.__dict__.get, _HOOKS))


def untraceable_reason(module: nn.Module) -> str | None:
    """Return why a module cannot be the root of a trace whatever its code, or None.

    Examples:
        >>> untraceable_reason(nn.Module())
        'it has no forward'
    """
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module"
    if "forward" not in module.__dict__ and type(module).forward is nn.Module.forward:
        return NO_FORWARD
    if (replaced := access_disguise(module)) is not None:
        return replaced
    if "_orig_mod" in module._modules:
        return "it is compiled"
    if type(module).__module__.startswith("torch.nn.parallel"):
        return "it runs its network on several devices"
    return None


def one_line(error: BaseException) -> str:
    """Return an error as one line: its class and the start of its text.

    Examples:
        >>> one_line(ValueError("too  long"))
        'ValueError: too long'
    """
    try:
        text = " ".join(str(error).split())
    except Exception:  # it may hold a traced value, which can no longer be printed
        text = ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def current_modes() -> tuple[bool, ...]:
    """Return the modes that a context manager may set: gradients, autocast by device.

    Examples:
        >>> with torch.no_grad():
        ...     current_modes()
        (False, False, False)
    """
    return _HAS_GRAD(), _HAS_AUTOCAST("cpu"), _HAS_AUTOCAST("cuda")


_HAS_GRAD, _HAS_AUTOCAST = torch.is_grad_enabled, torch.is_autocast_enabled
"""As they are: a recording watches who asks torch."""


def drop_checks(graph: fx.Graph, root: Frame) -> None:
    """Remove assertions and the comparisons they leave: readers of a value that compute nothing."""
    kept = handed(root)
    for node in reversed(list(graph.nodes)):
        if not node.users and node not in kept and _computes_nothing(node):
            frame_of(node).nodes.remove(node)
            graph.erase_node(node)


def _computes_nothing(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function":
        return is_question(node)
    name = name_of(node)
    return name in _CHECKS or "_assert" in name or name in _COMPARISONS or is_question(node)


def helper_methods(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the model's own methods (not forward, not torch's), which forward may call."""
    seen = {"forward"}
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch."):
            continue
        for name, value in kind.__dict__.items():
            plain = callable(value) and hasattr(value, "__code__")
            if plain and name not in seen and not name.startswith("__"):
                yield name, value
            seen.add(name)


def stored_path(frame: Frame, path: str, tensor: torch.Tensor) -> str:
    """Return the name of a stored tensor, below the frame's own module where a tie gives it one."""
    if not frame.path or path.startswith(frame.path + "."):
        return path
    for table in (frame.module.named_parameters(), frame.module.named_buffers()):
        for name, value in table:
            if value is tensor:
                return f"{frame.path}.{name}"
    return path
