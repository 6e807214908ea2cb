"""How big a model is: its parameters, and the multiply-adds of one call."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from refold.graph import duplicate, run_blank, surroundings_kept, unwrap
from refold.inputs import Arguments, arguments, call, tensors, unrunnable


@dataclass(frozen=True, slots=True)
class Workload:
    """Parameters of a model and the multiply-adds of one call; None when no input was given."""

    parameters: int
    macs: int | None

    def __str__(self) -> str:
        """Say both in millions: `5.29 M parameters, 401.2 M multiply-adds`."""
        macs = "" if self.macs is None else f", {self.macs / 1e6:,.1f} M multiply-adds"
        return f"{self.parameters / 1e6:,.2f} M parameters{macs}"


def workload_of(model: nn.Module, example_inputs: Any = None) -> Workload:
    """Count parameters (each tensor once) and the multiply-adds of convolutions and products.

    The model runs on tensors without data, so even a large one costs no memory and little time;
    one that needs real values (control flow on data) runs once for real, on a copy.

    Args:
        model: Any module, on any device. It is never changed.
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of them by name; the
            count is for this whole batch.

    Raises:
        InputError: When the model cannot run on the example inputs.

    Examples:
        >>> workload_of(nn.Conv2d(3, 8, 3, bias=False), torch.zeros(1, 3, 6, 6))
        Workload(parameters=216, macs=3456)
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    inputs = arguments(model, example_inputs)
    return Workload(parameters, None if inputs is None else _count_macs(model, inputs))


def _frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy without gradients: the counter trips over parameters given to a layer."""
    twin = duplicate(model)  # also of models whose weights are computed on the way
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def _count_macs(model: nn.Module, inputs: Arguments) -> int | None:
    if not all(tensor.is_meta for tensor in tensors(inputs)):  # those on meta have no data as it is
        try:
            return _count_blank(unwrap(model), inputs)
        except Exception:  # whatever data-free tensors cannot do, the real ones decide
            pass
    try:
        with counting() as counter, surroundings_kept(model):
            call(_frozen_copy(model), pytree.tree_map_only(Tensor, torch.clone, inputs))
    except Exception:
        _must_run(model, inputs)
        return None  # the counter cannot follow it
    return counter.get_total_flops() // 2


def _must_run(model: nn.Module, inputs: Arguments) -> None:
    try:
        with torch.random.fork_rng(devices=[]), surroundings_kept(model):
            call(duplicate(model), pytree.tree_map_only(Tensor, torch.clone, inputs))
    except Exception as error:
        raise unrunnable(model, inputs, error) from error


def _count_blank(model: nn.Module, inputs: Arguments) -> int:
    with counting() as counter:
        run_blank(model, inputs, runs_all=True)
    return counter.get_total_flops() // 2


@contextmanager
def counting() -> Generator[FlopCounterMode]:
    """Count the multiply-adds of what runs inside, as half of the counter's total."""
    # The fused attention kernels of the CPU hide their products from the counter.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
            yield count
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
