"""One row of the table: a network of somebody's package, folded and compared."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from refold.graph import Kept, fold_model
from refold.inputs import arguments
from zoo.calls import run_counting
from zoo.guests.guest import Guest
from zoo.live import enliven, is_norm
from zoo.peers import first_words, relative_error

TOLERANCE = 1e-9
_CHAOS = 1e-4  # what a network makes of a rounding, at most


@dataclass
class Row:
    """What was measured of one network; `faults` is empty when nothing is wrong.

    Args:
        label: package and name.
        version: of the package.
        missing: what is not installed, if anything; then nothing was measured.
        parts: how many graphs the recording of the model has; 1 is the whole of it.
        norms: norms with fixed statistics that a call runs, before and after.
        layers: convolutions and products with a matrix that a call runs, before and after.
        error: the largest relative error of an output, in float64.
        seconds: processor time of the fold, in one thread.
        stays: the norms that still run, each with the reason.
        note: what a reader of the error should know.
        faults: what is wrong.
    """

    label: str
    version: str = ""
    missing: str = ""
    parts: int = 0
    norms: tuple[int, int] = (0, 0)
    layers: tuple[int, int] = (0, 0)
    error: float = float("inf")
    seconds: float = 0.0
    stays: dict[str, str] = field(default_factory=dict[str, str])
    faults: list[str] = field(default_factory=list[str])
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


def measure(guest: Guest) -> Row:
    """Fold one network with live statistics; a crash is a fault of the row, not of the table."""
    row = Row(guest.label)
    try:
        model, example = guest.model(), guest.example()
        row.version = version(guest.package)
        _compare(row, model, arguments(model, example) or ())
    except ModuleNotFoundError as error:
        row.missing = error.name or str(error)
    except Exception as error:
        row.faults.append(f"crash: {first_words(error)}")
    return row


def _compare(row: Row, model: nn.Module, given: tuple[Any, ...]) -> None:
    enliven(model, given)
    expected, layers, before = _run(model, given)
    start = time.process_time()
    done = fold_model(model, given, check=True)  # what reparameterize does, with its account
    row.seconds = time.process_time() - start
    found, left, after = _run(done.model, given)
    row.parts, row.norms, row.layers = len(done.roots), (len(before), len(after)), (layers, left)
    row.error = relative_error(expected, found)
    row.stays = _reasons(after, done.kept)
    moved = 0.0 if row.error <= TOLERANCE else _moved(model, given, expected)
    if moved:
        row.note = f"a rounding of its input moves its answer by {moved:.0e}"
    _judge(row, expected, found, max(TOLERANCE, 10 * moved))


def _moved(model: nn.Module, given: tuple[Any, ...], expected: Any) -> float:
    """Return how far the answer moves when the numbers of the input are a few roundings off."""

    def shaken(tensor: Tensor) -> Tensor:
        exact = not tensor.is_floating_point()
        return tensor if exact else tensor * (1 + 4 * torch.finfo(tensor.dtype).eps)

    found, _, _ = _run(model, pytree.tree_map_only(Tensor, shaken, given))
    return min(relative_error(expected, found), _CHAOS)


def _judge(row: Row, expected: Any, found: Any, tolerance: float) -> None:
    if not row.error <= tolerance:
        row.faults.append(f"error {row.error:.1e}")
    if type(expected) is not type(found):
        row.faults.append(f"gives {type(found).__name__}, not {type(expected).__name__}")
    if row.layers[1] > row.layers[0]:
        row.faults.append(f"runs {row.layers[1]} layers, {row.layers[0]} before")
    silent = [path for path, why in row.stays.items() if not why]
    row.faults += [f"{path} still runs, without a reason" for path in silent]


def _run(model: nn.Module, given: tuple[Any, ...]) -> tuple[Any, int, list[str]]:
    """Return the result of a call, how many layers it ran, and the norms: by path, and calls."""
    ran: list[str] = []
    torch.manual_seed(0)  # some networks add noise
    with _NormCalls(model, ran):
        result, layers = run_counting(model, given)
    return result, layers, list(dict.fromkeys(ran))


class _NormCalls(TorchFunctionMode):
    """Notes the norm layers that are called, and `batch_norm` calls outside of them."""

    def __init__(self, model: nn.Module, ran: list[str]) -> None:
        super().__init__()
        self.model, self.ran, self.inside = model, ran, 0
        self.names = {id(tensor): name for name, tensor in model.named_buffers()}
        self.hooks: list[Any] = []

    def __enter__(self) -> Any:
        for path, module in self.model.named_modules():
            if is_norm(module):
                self.hooks.append(module.register_forward_pre_hook(self._enters(path)))
                self.hooks.append(module.register_forward_hook(self._leaves))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*error)

    def _enters(self, path: str) -> Any:
        def note(*_: Any) -> None:
            self.inside += 1
            self.ran.append(path)

        return note

    def _leaves(self, *_: Any) -> None:
        self.inside -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in (F.batch_norm, torch.batch_norm) and not self.inside:
            mean = args[1] if len(args) > 1 else given.get("running_mean")
            if mean is not None:
                self.ran.append(self.names.get(id(mean), "a norm").rpartition(".")[0])
        return func(*args, **given)


def _reasons(paths: list[str], kept: tuple[Kept, ...]) -> dict[str, str]:
    """Return why each norm stays, as the account says; empty where it does not."""
    said = {place: item.reason for item in kept for place in item.where.split(" + ")}
    return {path: said.get(path) or _near(path, said) for path in paths}


def _near(path: str, said: dict[str, str]) -> str:
    """Return the reason of a call in a norm with code of its own, or of the part that it is in."""
    inside = next((why for place, why in said.items() if place.startswith(f"{path}.")), "")
    while path and not inside:
        path = path.rpartition(".")[0]
        inside = said.get(path, "")
    return inside
