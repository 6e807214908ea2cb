"""What others fold: timm and torch.fx one after the other; ultralytics its own networks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse


def fold_with_peer(model: nn.Module, source: str) -> tuple[nn.Module, str]:
    """Return a copy folded by its own library and torch.fx, and what could not be done."""
    copied = copy.deepcopy(model)
    if source == "ultralytics":
        return _fuse_ultralytics(copied), ""
    from timm.utils import reparameterize_model

    folded = reparameterize_model(copied)
    note = ""
    if len({tensor.dtype for tensor in folded.parameters()}) > 1:
        note, folded = "timm puts float32 layers into the float64 network", folded.double()
    try:
        return fuse(folded.eval()), note
    except Exception as error:  # whatever fx cannot trace it does not fold
        return folded, f"{note}; fx.fuse: {first_words(error)}".removeprefix("; ")


def _fuse_ultralytics(model: Any) -> nn.Module:
    return model.fuse(verbose=False).eval()


def dropped_by_peer(model: nn.Module, peer: nn.Module) -> tuple[str, ...]:
    """Return the parts that a peer took out without folding them: YOLOv10's second heads."""
    kept = dict(peer.named_modules())
    return tuple(
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and path not in kept
        and path.rpartition(".")[0] in kept
    )


def first_words(error: BaseException) -> str:
    """Return an error as a few words for a cell of a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:70] if text else type(error).__name__


def relative_error(reference: Any, candidate: Any) -> float:
    """Return the largest max|delta| / max|reference| over the outputs, or infinity."""
    expected, found = _tensors(reference), _tensors(candidate)
    if len(expected) != len(found) or not any(tensor.numel() for tensor in expected):
        return float("inf")
    return max(_error(a, b) for a, b in zip(expected, found, strict=True))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for key in sorted(value, key=str) for tensor in _tensors(value[key])]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _error(expected: torch.Tensor, found: torch.Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    delta, scale = (expected - found).abs().max().item(), expected.abs().max().item()
    if delta == 0:
        return 0.0
    error = delta / scale if scale else float("inf")
    return error if error == error else float("inf")  # NaN is not an equality
