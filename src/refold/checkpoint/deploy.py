"""Fold the weights of branches into the one convolution they add up to, without a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from refold.algebra.operator import Conv
from refold.checkpoint.families import Family
from refold.checkpoint.kinds import settle, some
from refold.checkpoint.layouts import TrainBlock, is_statistic, layouts, train_blocks
from refold.checkpoint.names import common_name, common_names
from refold.checkpoint.read import OPTIONAL, strip
from refold.errors import CheckpointError, RefoldError
from refold.transforms import equivalent_conv, equivalent_linear

DEFAULT_EPS = 1e-5
"""The `eps` that norms are taken to have, PyTorch's default: no state_dict holds it."""

_AUXILIARY = re.compile(r"stage\w+_aux\.")  # RepVGGplus: heads that only training uses


class Deployed(NamedTuple):
    """Weights in deploy form, in whose layout, how many blocks were folded, and what was left."""

    state: dict[str, Tensor]
    layout: str
    folded: int
    left_out: tuple[str, ...]


def deploy_state_dict(
    state: Mapping[str, Tensor], *, eps: float = DEFAULT_EPS
) -> dict[str, Tensor]:
    """Return a state_dict in deploy form: every block's branches as the one convolution they are.

    The layout is recognised from the keys, and the new keys are those of the same repository:
    RepVGG, RepVGGplus, DBB, ACNet, MobileOne, RepLKNet, RepMLP, RepMLPNet, RMRep, or timm's RepVGG
    and MobileOne. Keys of other layers stay; heads that only training uses are left out; a
    state_dict in deploy form stays what it is. Computed in float64, rounded once; float8 is
    widened to float32 first.

    Args:
        state: the weights, with or without wrapper prefixes such as `module.`.
        eps: of the norms, which no state_dict holds.

    Raises:
        CheckpointError: when no layout is recognised, a block lacks a key, has one too many or
            of another shape, holds what is not a real number, or folds to what is not finite.

    Exact when:
        the norms have this `eps` and the partitions of RepMLP are square, as all published ones
        are (a network knows those of its own); stride and padding play no part.

    Examples:
        >>> from refold.blocks import RepVGGBlock
        >>> block = RepVGGBlock(4, 4, 3, padding=1)
        >>> {name: tuple(w.shape) for name, w in deploy_state_dict(block.state_dict()).items()}
        {'rbr_reparam.weight': (4, 4, 3, 3), 'rbr_reparam.bias': (4,)}
    """
    return to_deploy(state, eps).state


def to_deploy(state: Mapping[str, Tensor], eps: float = DEFAULT_EPS) -> Deployed:
    """Do as `deploy_state_dict`, and say what was done.

    Raises:
        CheckpointError: as there.
    """
    names, _ = strip(state)
    plain, _ = settle({name: state[key] for name, key in names.items()})
    found = layouts(plain)
    if not found:
        raise CheckpointError(
            f"the keys match no known layout of branches ({some(list(plain))}); give the network: "
            "refold.load_checkpoint(model, file), then refold.reparameterize(model)"
        )
    kept = without_auxiliary(plain)
    blocks = train_blocks(kept)
    _refuse_partial(kept, blocks)
    left_out = tuple(key for key in plain if key not in kept)
    return Deployed(fold_blocks(kept, blocks, eps), " + ".join(found), len(blocks), left_out)


def without_auxiliary(state: Mapping[str, Tensor], but: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the weights without RepVGGplus's auxiliary heads, except those named in `but`."""
    return {k: tensor for k, tensor in state.items() if k in but or not _AUXILIARY.match(k)}


def without_statistics(state: Mapping[str, Tensor], but: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the weights without the statistics that RMNet's residuals log, except `but`.

    Examples:
        >>> state = {"layer1.0.running1.running_mean": torch.zeros(4), "fc.bias": torch.zeros(2)}
        >>> list(without_statistics(state))
        ['fc.bias']
    """
    return {k: tensor for k, tensor in state.items() if k in but or not is_statistic(k)}


def _refuse_partial(state: Mapping[str, Tensor], blocks: Iterable[TrainBlock]) -> None:
    """Refuse weights of which a plain network needs more than its blocks' convolutions.

    Raises:
        CheckpointError: when they hold residuals, or gates that are narrower than their block.
    """
    gates = [block for block in blocks if block.family.hands_on and _is_narrow(block, state)]
    if gates or any(map(is_statistic, state)):
        what = f"{gates[0].prefix[:-1]}'s gates" if gates else "residual blocks"
        raise CheckpointError(
            f"weights alone do not tell a plain network's {what}; give the network: "
            "refold.load_checkpoint(model, file), then refold.remove_residuals(model, x), or "
            "refold.reparameterize(model, x, allow_growth=True)"
        )


def _is_narrow(block: TrainBlock, state: Mapping[str, Tensor]) -> bool:
    gate = state.get(f"{block.prefix}se.up.weight")
    return gate is not None and len(gate) < state[f"{block.prefix}se.down.weight"].shape[1]


def fold_blocks(
    state: Mapping[str, Tensor], blocks: Iterable[TrainBlock], eps: float
) -> dict[str, Tensor]:
    """Return the weights with these blocks folded, in the order of the old ones."""
    todo = {block.keys[0]: block for block in blocks}
    replaced = {key for block in todo.values() for key in block.keys}
    results = {key for block in todo.values() for key in block.deploy_keys}
    if twice := [key for key in state if key in results - replaced]:
        raise CheckpointError(f"{some(twice)} stand beside the branches that fold into them")
    folded: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key in todo:
            folded |= _fold(todo[key], state, eps)
        elif key not in replaced:
            folded[key] = tensor
    bad = [key for key, tensor in folded.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError(
            f"NaN or infinity after folding in {some(bad)}: the weights hold such values, a "
            "running variance is negative, or the sums overflow the file's precision"
        )
    return folded


def _fold(block: TrainBlock, state: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    kernel = state[block.prefix + block.family.signs[0]]
    module = _filled(block, state)
    for part in module.modules():
        if hasattr(part, "eps"):
            cast(Any, part).eps = eps
    try:
        with torch.no_grad():
            plain = _plain(module, block.family, kernel)
    except RefoldError as error:
        raise _unfoldable(block, str(error)) from error
    more = len(plain.weight) - len(kernel)
    fits = more >= 0 if block.family.hands_on else more == 0
    if not fits or plain.weight[0].numel() != kernel[0].numel():
        raise _unfoldable(block, f"it gives a kernel {tuple(plain.weight.shape)}")
    bias = plain.weight.new_zeros(len(plain.weight)) if plain.bias is None else plain.bias
    weight_key, bias_key = block.deploy_keys
    weight = plain.weight.to(kernel).reshape(-1, *kernel.shape[1:])
    return {weight_key: weight, bias_key: bias.to(kernel)}


def _plain(module: nn.Module, family: Family, kernel: Tensor) -> Conv:
    """Return the one convolution, or linear layer, that a block in float64 is."""
    if family.size is not None:
        size = family.size(module)
        return equivalent_linear(module, torch.empty(1, *size, dtype=torch.double))
    conv = next(part for part in module.modules() if hasattr(part, "in_channels"))
    sizes = [2 * size + 1 for size in kernel.shape[2:]]
    channels = cast(nn.Conv2d, conv).in_channels
    return equivalent_conv(module, torch.empty(1, channels, *sizes, dtype=torch.double))


def _filled(block: TrainBlock, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the block as a module with its tensors loaded, in float64 and eval mode."""
    inner = {common_name(key[len(block.prefix) :], False): key for key in block.keys}
    _require_real({key: state[key] for key in block.keys}, block)
    own = {name: state[key].detach().to("cpu", torch.double) for name, key in inner.items()}
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to use
            module = block.family.build(own, **block.options)
    except KeyError as error:
        raise _unfoldable(block, f"there is no {block.prefix}{error.args[0]}") from error
    except (ValueError, IndexError, RuntimeError) as error:
        raise _unfoldable(block, str(error)) from error
    _fill(module, own, inner, block)
    return module.eval()


def _require_real(state: Mapping[str, Tensor], block: TrainBlock) -> None:
    """Refuse what would lose its imaginary part, or a sum rounded to integers."""
    bad = [
        f"{key} ({str(tensor.dtype)[6:]})"
        for key, tensor in state.items()
        if not tensor.is_floating_point() and not key.endswith(OPTIONAL)
    ]
    if bad:
        raise _unfoldable(block, f"{some(bad)} holds no floating-point numbers")


def _fill(
    module: nn.Module, own: Mapping[str, Tensor], names: Mapping[str, str], block: TrainBlock
) -> None:
    """Load tensors in the common spelling; `names` are what the state_dict calls them."""
    targets = module.state_dict()
    keys = common_names(targets)
    missing = [block.prefix + key for name, key in keys.items() if name not in own]
    extra = [names[name] for name in own if name not in keys]
    faults = [
        f"{names[name]} is {tuple(tensor.shape)} where {tuple(targets[keys[name]].shape)} belongs"
        for name, tensor in own.items()
        if name in keys and targets[keys[name]].shape != tensor.shape
    ]
    if missing := [key for key in missing if not key.endswith(OPTIONAL)]:
        faults.append(f"there is no {some(missing)}")
    if extra:
        faults.append(f"such a block has no {some(extra)}")
    if faults:
        raise _unfoldable(block, "; ".join(faults))
    module.load_state_dict({keys[name]: tensor for name, tensor in own.items()}, strict=False)


def _unfoldable(block: TrainBlock, reason: str) -> CheckpointError:
    name = block.prefix[:-1] or "the network"
    signs = ", ".join(block.prefix + sign for sign in block.family.signs)
    return CheckpointError(
        f"{name} looks like a block of {block.family.label} (it has {signs}) but cannot be folded: "
        f"{reason}"
    )
