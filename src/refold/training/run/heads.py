"""The layer that names classes: another number of classes needs another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from refold.errors import InputError
from refold.training.loop.learner import outputs


def fit_head(network: nn.Module, classes: int, image: tuple[int, ...]) -> tuple[str, ...]:
    """Replace the last layer of a network that has another number of outputs than wanted.

    Args:
        network: changed in place.
        classes: as many outputs as it shall have.
        image: shape of one, (C, H, W).

    Returns:
        The name of the new layer, if there is one.

    Examples:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1000))
        >>> fit_head(net, 5, (3, 2, 2)), net[1].out_features
        (('1',), 5)
    """
    called: list[str] = []
    names = {module: name for name, module in network.named_modules() if _is_layer(module)}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        called.append(names[module])

    handles = [module.register_forward_hook(note) for module in names]
    training = network.training
    try:
        with torch.no_grad():
            like = next(network.parameters())
            width = outputs(network.eval()(torch.zeros(2, *image).to(like)))[0].shape[1]
    except Exception:  # whoever makes the learner says what is wrong
        return ()
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    last = next((n for n in reversed(called) if _width(network.get_submodule(n)) == width), None)
    if width == classes or not last or called.count(last) > 1:
        return ()
    _replace(network, last, classes)
    return (last,)


def hand_over(source: nn.Module, target: nn.Module) -> tuple[str, ...]:
    """Copy all tensors but those of the head, and return the names of the layers that are new.

    Args:
        source: the same network with another number of classes.
        target: changed in place.

    Examples:
        >>> one, two = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, n)) for n in (5, 7))
        >>> hand_over(one, two), torch.equal(one[0].weight, two[0].weight)
        (('1',), True)
    """
    state, own = _tensors(source), _tensors(target)
    fits = {
        key: value for key, value in state.items() if key in own and own[key].shape == value.shape
    }
    target.load_state_dict(fits, strict=False)
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in own if key not in fits))


def class_counts(
    state: dict[str, Tensor], build: Callable[[int], nn.Module], classes: int
) -> list[int]:
    """Return how many classes weights may be for, the likeliest first.

    Args:
        state: the weights, under whatever names.
        build: makes the network for a number of classes.
        classes: for which the weights do not fit.
    """
    heads = _heads(build, classes)
    if not heads:  # what is built does not depend on the number
        return []
    named = [value for key, value in state.items() if any(_ends(key, head) for head in heads)]
    rows = [value for value in state.values() if value.ndim == 2][-1:]
    counts = [int(value.shape[0]) for value in (*named, *rows) if value.ndim]
    return [count for count in dict.fromkeys(counts) if count != classes]


def without_head(build: Callable[[int], nn.Module], classes: int) -> nn.Module:
    """Return a network without the layers that name classes, as backbones are published.

    Args:
        build: makes the network for a number of classes.
        classes: any number of them.

    Returns:
        The network, to load weights into; whole where none of its layers depends on the number.

    Examples:
        >>> def build(n): return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, n))
        >>> without_head(build, 5)
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): Identity()
        )
    """
    network = build(classes)
    for path in {key.rpartition(".")[0] for key in _heads(build, classes)} - {""}:
        above, _, name = path.rpartition(".")
        setattr(network.get_submodule(above), name, nn.Identity())
    return network


def _heads(build: Callable[[int], nn.Module], classes: int) -> list[str]:
    """Return the names of the tensors that depend on the number of classes."""
    one, other = _tensors(build(classes)), _tensors(build(classes + 1))
    return [key for key, value in other.items() if key not in one or one[key].shape != value.shape]


def _ends(key: str, name: str) -> bool:
    return key == name or key.endswith(f".{name}")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {key: x for key, x in model.state_dict().items() if isinstance(x, Tensor)}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, _ConvNd))


def _width(module: nn.Module) -> int:
    return cast(int, getattr(module, "out_features", getattr(module, "out_channels", 0)))


def _replace(network: nn.Module, path: str, classes: int) -> None:
    """Put a new layer of the same kind in the place of one.

    Raises:
        InputError: when it is not a plain layer.
    """
    old: Any = network.get_submodule(path)
    options = {"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
    if type(old) is nn.Linear:
        new: nn.Module = nn.Linear(old.in_features, classes, **options)
    elif type(old) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and old.groups == 1:
        new = type(old)(
            old.in_channels, classes, old.kernel_size, old.stride, old.padding, old.dilation,
            **options,
        )  # fmt: skip
    else:
        raise InputError(
            f"{path}, a {type(old).__name__} of {_width(old)} outputs, cannot be replaced by one "
            f"of {classes} classes: let the factory take num_classes"
        )
    above, _, name = path.rpartition(".")
    setattr(network.get_submodule(above), name, new.train(old.training))
