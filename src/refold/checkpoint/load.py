"""Load weights from a file into a model: whole or not at all, every mismatch named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from refold.checkpoint.adapt import Adapted, adapt
from refold.checkpoint.deploy import DEFAULT_EPS
from refold.checkpoint.expanded import branches_told
from refold.checkpoint.finding import Choice, listed
from refold.checkpoint.kinds import misfit, settle, some
from refold.checkpoint.layouts import Told
from refold.checkpoint.read import (
    COUNTERS,
    OPTIONAL,
    path_of,
    plain_names,
    read_choices,
    require_finite,
    require_one,
    strip,
)
from refold.checkpoint.wrapped import Reading, readings
from refold.engine.outside import outside
from refold.errors import CheckpointError, require_kind

# A block's own words for what its branches become, and the maps it flattens; see `refold.blocks`.
_SAYS, _SIZE = "deploy_name", "partition_size"
_MIRROR = "ema_"  # of mmcv: a buffer for each tensor, which swaps values with it every epoch
_ROLES = frozenset({"weight", "bias", "running_mean", "running_var", OPTIONAL})


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was loaded, from which containers inside the file, without which name prefixes.

    Args:
        path: the file.
        loaded: how many tensors of the model were set.
        unwrapped: the containers inside the file that the weights lay in.
        stripped: the prefixes that their names were freed of.
        layout: whose names the file has, such as `RepVGG` or `timm MobileOne`; empty if unknown.
        folded: how many blocks in training form were folded on the way.
        left_out: the keys that the model has no use for: auxiliary heads of training, what
            residuals log of their values (RMNet), and what stands beside a wrapped network.
        notes: what was done to values on the way, such as float8 widened to float32.
    """

    path: Path
    loaded: int
    unwrapped: tuple[str, ...] = ()
    stripped: tuple[str, ...] = ()
    layout: str = ""
    folded: int = 0
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [f"loaded {self.loaded} tensors of {self.path.name}"]
        if self.unwrapped:
            parts.append(f"from {' > '.join(self.unwrapped)}")
        if self.stripped:
            parts.append(f"without prefix {', '.join(self.stripped)}")
        if self.layout:
            parts.append(f"in the layout of {self.layout}")
        if self.folded:
            parts.append(f"with {self.folded} blocks folded")
        if self.left_out:
            parts.append(f"without {len(self.left_out)} tensors that the model has no use for")
        parts.extend(f"({note})" for note in self.notes)
        return " ".join(parts)


class MisfitError(CheckpointError):
    """The tensors of a file are not those of the model: so many of either lack a fellow."""

    def __init__(self, text: str, count: int) -> None:
        super().__init__(text)
        self.count = count


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    eps: float = DEFAULT_EPS,
) -> LoadReport:
    """Load a file's weights into the model, in place; every key and shape must fit.

    Reads safetensors, HDF5, `torch.save` and pickle files, the last two without ever running code
    from them: no class is looked up but the few that torch's reader of weights knows, and of a
    whole pickled module the tensors are taken. Weights may sit inside `state_dict`, `model`, `ema`
    and the like (averaged weights win) or any other container, and their names may have a prefix
    that the model's lack (`module.`, `model.`, `_orig_mod.`). Of several sets of weights the one
    that fits is taken; where more fit, and differ, `key` must say which. Floats are cast to the
    model's types, float8 by way of float32; integers and complex numbers are refused where the
    model has floats. A file may lack `num_batches_tracked`.

    Where the names differ, those of RepVGG, RepVGGplus, DBB, ACNet, MobileOne, RepLKNet, RepMLP,
    RepMLPNet, RMNet and timm's RepVGG and MobileOne are translated, in training and in deploy form.
    A block in training form is folded on the way into a model that has it in deploy form, and so is
    the whole file where `create_model(..., deploy=True)` made the model by folding; the other way
    round there is no way.

    Args:
        model: any module, in either form.
        path: the file, or a folder that Hugging Face's `save_pretrained` wrote.
        key: the container in the file to take the weights from, such as `teacher` or
            `nets.generator`, or what their names begin with.
        eps: of the norms that are folded on the way: a state_dict does not hold it.

    Raises:
        CheckpointError: When the file is missing, damaged, holds no finite tensors or several sets
            that fit, or does not fit; the model is then unchanged.

    Examples:
        >>> import tempfile, torch
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = Path(folder.name) / "linear.pth"
        >>> torch.save({"state_dict": nn.Linear(2, 3).state_dict()}, file)
        >>> print(load_checkpoint(nn.Linear(2, 3), file))
        loaded 2 tensors of linear.pth from state_dict
        >>> folder.cleanup()
    """
    _require_kinds(model, key)
    try:
        return _load(model, path_of(path), key, eps)
    except CheckpointError:
        form: TrainForm | None = getattr(model, "train_form", None)
        report = None if form is None else _load_folded(model, form, path_of(path), key, eps)
        if report is None:
            raise
        return report


def map_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], *, key: str | None = None
) -> LoadReport:
    """Do as `load_checkpoint`, and leave the numbers of large weights in the file.

    Parameters on the meta device become views of the file, which must stay as it is while the model
    is used; all others are copied. What has another type than the model's is cast, and put where
    `kept_outside` says.

    Args:
        model: any module; `without_weights` makes one whose large parameters are on meta.
        path: a safetensors file, or the index of several.
        key: what their names begin with.

    Raises:
        CheckpointError: as `load_checkpoint`, and when the file is no safetensors.
    """
    _require_kinds(model, key)
    return _load(model, path_of(path), key, DEFAULT_EPS, mapped=True)


def _require_kinds(model: object, key: object) -> None:
    require_kind("model", model, nn.Module, "a torch.nn.Module")
    if key is not None:
        require_kind("key", key, str, "the name of a container")


class TrainForm(Protocol):
    """What a network that was folded on being made says of how: `create_model` leaves it there."""

    def build(self) -> nn.Module:
        """Return a network in train form."""
        ...

    def fold(self, model: nn.Module) -> nn.Module:
        """Return the deploy form of such a network."""
        ...


def _load_folded(
    model: nn.Module, form: TrainForm, file: Path, key: str | None, eps: float
) -> LoadReport | None:
    """Load into a network in train form and take over what it folds to; None where that fails."""
    train = form.build()
    try:
        report = _load(train, file, key, eps)
    except CheckpointError:
        return None
    state, own = form.fold(train).state_dict(), model.state_dict()
    if {key: t.shape for key, t in state.items()} != {key: t.shape for key, t in own.items()}:
        return None  # somebody changed the network since
    model.load_state_dict(state)
    before = sum(1 for key in train.state_dict() if key.endswith("running_var"))
    left = sum(1 for key in state if key.endswith("running_var"))
    return replace(report, loaded=len(state), folded=before - left)


class _Fit(NamedTuple):
    """Weights under the model's names, and what to report of them."""

    state: dict[str, Tensor]
    report: LoadReport
    choice: Choice
    reading: Reading


def _load(
    model: nn.Module, file: Path, key: str | None, eps: float, *, mapped: bool = False
) -> LoadReport:
    choices = read_choices(file, key, mapped=mapped)
    target = _Target(model, file, eps, mapped)
    fits: list[_Fit] = []
    faults: list[CheckpointError] = []
    for choice in choices:
        try:
            fits += target.fits(choice)
        except CheckpointError as fault:
            faults.append(fault)
    if not fits and len(choices) > 1:
        raise CheckpointError(
            f"checkpoint {file} holds several sets of weights, and none fits the model: "
            f"{listed(choices)}; choose one with key={choices[0].key!r} "
            f"(--weights-key {choices[0].key}) to see what differs"
        ) from faults[0]
    if not fits:
        raise faults[0]
    require_one([replace(fit.choice, path=_place(fit), state=fit.state) for fit in fits], file)
    best = fits[0]
    if mapped and best.report.folded:
        raise CheckpointError(
            f"checkpoint {file} is in training form and the model is not: only a network in the "
            "form of the file is streamed; build it in training form"
        )
    state = {target.ours[name]: tensor for name, tensor in best.state.items()}
    model.load_state_dict(_assign(model, state) if mapped else state, strict=False)
    return best.report


def _assign(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make the tensors that belong on meta the model's parameters; return the others."""
    own = dict(model.named_parameters(remove_duplicate=False))
    empty = {name for name in state if name in own and own[name].is_meta}
    for name in empty:
        if own[name].is_meta:  # it is not a second name of one that has its numbers
            new = nn.Parameter(state[name], requires_grad=own[name].requires_grad)
            torch.utils.swap_tensors(own[name], new)
    return {name: tensor for name, tensor in state.items() if name not in empty}


def _place(fit: _Fit) -> tuple[str, ...]:
    return (*fit.choice.path, *(prefix.rstrip(".") for prefix in fit.reading.stripped))


class _Target:
    """A model, and the sets of weights that fit it."""

    def __init__(self, model: nn.Module, file: Path, eps: float, mapped: bool = False) -> None:
        self._model, self._file, self._eps = model, file, eps
        targets = _targets(model, mapped)
        self.ours, self._stripped = strip(targets)  # a wrapped model has prefixes of its own
        self._own = {name: targets[key] for name, key in self.ours.items()}
        self._told = _told(model, self.ours)
        buffers = {key for key, _ in model.named_buffers()}
        self._unbounded = {
            name
            for name, own in self._own.items()
            if self.ours[name] in buffers and bool(torch.isinf(own).any())
        }  # the range of a clamp, say: the file's may hold infinity as well

    def fits(self, choice: Choice) -> list[_Fit]:
        """Return how the weights fit under the likeliest reading of their names that does.

        Raises:
            CheckpointError: when they do not fit; it speaks of their names as they are.
        """
        require_finite(choice.state, self._file, choice.state if self._unbounded else ())
        names, stripped = plain_names(choice.state, self._file)
        required = {name for name in self._own if not name.endswith(OPTIONAL)}
        first: CheckpointError | None = None
        for tier in readings(names, required):
            fits: list[_Fit] = []
            for reading in tier:
                try:
                    fits.append(self._fit(choice, reading, stripped))
                except CheckpointError as fault:
                    first = first or fault
            if fits:
                return [fit for fit in fits if fit.reading.is_averaged] or fits
        assert first is not None
        raise first

    def _fit(self, choice: Choice, reading: Reading, stripped: tuple[str, ...]) -> _Fit:
        own, file = self._own, self._file
        mirrors = {f"{_MIRROR}{name.replace('.', '_')}" for name in own}
        names = {
            n: full
            for n, full in reading.names.items()
            if n in own or not (_is_count(n) or n in mirrors)
        }
        raw = {name: choice.state[full] for name, full in names.items()}
        adapted = adapt(raw, own, file, eps=self._eps, told=self._told)
        self._require_fit(adapted)
        _refuse_transposed(self._model, [self.ours[name] for name in adapted.folded], file)
        state = {name: _cast(adapted.state[key], own[name]) for name, key in adapted.names.items()}
        require_finite(state, file, self._unbounded)
        _refuse_torn(own, state, file)
        prefixes = (*(p for p in stripped if p not in self._stripped), *reading.stripped)
        used = set(names.values()) | COUNTERS
        left_out = (*adapted.left_out, *(name for name in choice.state if name not in used))
        report = LoadReport(
            file, len(state), choice.path, prefixes, adapted.layout, len(adapted.folded),
            left_out, choice.notes,
        )  # fmt: skip
        return _Fit(state, report, choice, reading)

    def _require_fit(self, adapted: Adapted) -> None:
        """Refuse what does not fit, every tensor of it named; of branches, what to do with them.

        Raises:
            MisfitError: if so.
        """
        faults = _faults(self._own, adapted)
        texts = [f"{len(keys)} {what}: {some(keys)}" for what, keys in faults.items() if keys]
        if not texts:
            return
        missing = [self.ours[name] for name in faults["missing"]]
        what = branches_told(self._model, missing, adapted.state) or (
            f"does not fit the model: {'; '.join(texts)}; {_advice(self._own, adapted.state)}"
        )
        raise MisfitError(f"checkpoint {self._file} {what}", sum(map(len, faults.values())))


def _advice(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return what to do with weights that do not fit; folded ones have no norms."""
    have, has = (any(key.endswith("running_var") for key in one) for one in (own, state))
    if have and not has:
        return (
            "it holds no statistics of norms, as after a fold: give the weights from before it (of "
            "a run its folder, or its stock.safetensors), or load it into the folded network"
        )
    return "load it into the architecture (train or deploy form) it was saved from"


def _is_count(name: str) -> bool:
    """Say whether a profiler (thop) has left a tensor in the network: it counts operations."""
    return name.rpartition(".")[2] in ("total_ops", "total_params")


def load_in_order(model: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Load the same tensors under other names: the n-th of `state` into the n-th of the model.

    Exact when both list the same layers in the same order, which equal counts and shapes suggest
    but cannot prove; names such as `weight` or `running_var` must also agree where both use them.

    Returns:
        How many tensors were loaded.

    Raises:
        CheckpointError: When counts, a shape, a role or a kind of number differ; the model is then
            unchanged.
    """
    own = _targets(model)
    state, _ = settle(state)
    if len(own) != len(state):
        raise CheckpointError(
            f"the model has {len(own)} tensors and the checkpoint {len(state)}: they cannot be "
            "matched in order; load a checkpoint of exactly this architecture"
        )
    for (name, target), (other, tensor) in zip(own.items(), state.items(), strict=True):
        roles = name.rpartition(".")[2], other.rpartition(".")[2]
        if target.shape != tensor.shape or (roles[0] != roles[1] and _ROLES.issuperset(roles)):
            raise CheckpointError(
                f"{other} {tuple(tensor.shape)} of the checkpoint stands where the model has "
                f"{name} {tuple(target.shape)}: they cannot be matched in order"
            )
        if kinds := misfit(tensor, target):
            raise CheckpointError(
                f"{other} of the checkpoint holds {kinds}, as {name} of the model does; save it in "
                "the model's own type"
            )
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return len(own)


def _told(model: nn.Module, names: Mapping[str, str]) -> Told:
    """Return what modules say: that they deploy as their `conv`, or flatten maps of some size."""
    short = _prefixes(names)
    parts = [(f"{name}." if name else "", part) for name, part in model.named_modules()]
    known = [(short[name], part) for name, part in parts if name in short]
    pairs = {name for name, part in known if getattr(part, _SAYS, None) == "conv"}
    sizes = {name: getattr(part, _SIZE) for name, part in known if hasattr(part, _SIZE)}
    return Told(frozenset(pairs), sizes)


def _prefixes(names: Mapping[str, str]) -> dict[str, str]:
    """Map modules, with a dot, to what they are called without wrapper prefixes."""
    found: dict[str, str] = {}
    for short, full in names.items():
        parts = short.split(".")
        for index in range(len(parts)):
            rest = len(".".join(parts[index:]))
            found[full[:-rest]] = short[:-rest]
    return found


def _refuse_transposed(model: nn.Module, kernels: list[str], file: Path) -> None:
    """Refuse what was folded as convolutions and is none: no state_dict tells the two apart."""
    layers = [(key, model.get_submodule(key.rpartition(".")[0])) for key in kernels]
    bad = [key for key, layer in layers if isinstance(layer, _ConvTransposeNd)]
    if bad:
        raise CheckpointError(
            f"checkpoint {file} cannot be folded into transposed convolutions: {some(bad)}; load "
            "it into the model in training form, then refold.reparameterize that"
        )


def _cast(tensor: Tensor, own: Tensor) -> Tensor:
    cast = tensor.to(own.dtype)
    return (tensor if cast is tensor else outside(cast)).reshape(own.shape)


def _targets(model: nn.Module, mapped: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a model, which must be such that values can be copied into them."""
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    lazy = [key for key, tensor in own.items() if is_lazy(tensor)]
    if lazy:
        raise CheckpointError(
            f"the model's {some(lazy)} have no shape yet; run it once on an example, then load"
        )
    empty = [key for key, tensor in own.items() if tensor.is_meta]
    if empty and not mapped:
        raise CheckpointError(
            f"the model's {some(empty)} are on the meta device, where nothing can be loaded; call "
            "model.to_empty(device='cpu') first"
        )
    odd = [
        key for key, t in own.items() if t.is_quantized or t.is_nested or t.layout != torch.strided
    ]
    if odd:
        raise CheckpointError(
            f"the model's {some(odd)} are quantized, sparse or nested; load the weights first, "
            "then change the model"
        )
    return own


def _refuse_torn(own: Mapping[str, Tensor], state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse different values for what the model has in one place: the last ones would win."""
    first: dict[tuple[int, ...], str] = {}
    for name, tensor in state.items():
        target = own[name]
        storage = target.untyped_storage()._cdata if target.is_meta else target.data_ptr()
        place = (storage, *target.shape, *target.stride())
        other = first.setdefault(place, name) if target.numel() else name
        if not torch.equal(state[other], tensor):
            raise CheckpointError(
                f"checkpoint {file} holds different values for {other} and {name}, which are one "
                "tensor in the model (tied); save the state_dict of the tied model"
            )


def _is_shaped(tensor: Tensor, target: Tensor) -> bool:
    """Say whether a tensor has a shape, or is one number like it: old files write that as a row."""
    shapes = {tuple(tensor.shape), tuple(target.shape)}
    return len(shapes) == 1 or shapes == {(), (1,)}


def _faults(own: Mapping[str, Tensor], adapted: Adapted) -> dict[str, list[str]]:
    """Return which tensors do not fit, by what is wrong with them."""
    state, names = adapted.state, adapted.names
    used = set(names.values())
    kinds = {key: misfit(state[key], own[name]) for name, key in names.items()}
    return {
        "missing": [key for key in own if key not in names and not key.endswith(OPTIONAL)],
        "unexpected": [key for key in state if key not in used],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[name].shape)}"
            for name, key in names.items()
            if not _is_shaped(state[key], own[name])
        ],
        "of another kind": [f"{key} {what}" for key, what in kinds.items() if what],
    }
