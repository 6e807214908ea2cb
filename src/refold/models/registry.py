"""Networks by name: families register here, and `create_model` builds them.

A factory is called with `num_classes`, `in_chans` and the options of its name, and with `deploy`
where it has that argument. One without it is built in its train form and folded.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from refold.errors import InputError, require_kind
from refold.folding import reparameterize
from refold.models.backbone import Backbone

ModelFactory = Callable[..., nn.Module]
Factory = TypeVar("Factory", bound=ModelFactory)


@dataclass(frozen=True)
class Entry:
    """What a name stands for.

    Args:
        factory: what builds the network.
        options: what the name fixes; the caller's own options win.
    """

    factory: ModelFactory
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def accepted(self) -> set[str]:
        """The options that the factory takes by name."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {row.name for row in parameters if row.kind is not row.VAR_KEYWORD}

    @property
    def is_open(self) -> bool:
        """Whether the factory hands unknown options on."""
        parameters = inspect.signature(self.factory).parameters.values()
        return any(row.kind is row.VAR_KEYWORD for row in parameters)


@dataclass(frozen=True)
class TrainForm:
    """How a network in deploy form was made: by folding the one that `build` returns.

    Args:
        build: makes a network in train form.
    """

    build: Callable[[], nn.Module]

    def fold(self, model: nn.Module) -> nn.Module:
        """Return the deploy form of a network that `build` made."""
        return _folded(model)


_MODELS: dict[str, Entry] = {}


def register_model(name: str, **options: Any) -> Callable[[Factory], Factory]:
    """Enter a network class or factory under a name, as a decorator; one factory may have many.

    Args:
        name: what `create_model` calls it.
        options: what this name fixes of the factory's own arguments.

    Raises:
        InputError: when the name is taken by another factory.

    Examples:
        >>> @register_model("doctest_net", width=4)
        ... def net(num_classes=1000, in_chans=3, width=8):
        ...     return nn.Conv2d(in_chans, width, 1)
        >>> create_model("doctest_net").out_channels
        4
        >>> del _MODELS["doctest_net"]
    """

    def enter(factory: Factory) -> Factory:
        taken = _MODELS.setdefault(name, Entry(factory, options))
        if taken.factory is not factory or taken.options != options:
            raise InputError(f"a model named {name!r} exists; choose another name")
        return factory

    return enter


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, sorted.

    Examples:
        >>> list_models("mobileone_s?")[:2]
        ['mobileone_s0', 'mobileone_s1']
    """
    require_kind("pattern", pattern, str, "a text such as '*repvgg*'")
    return sorted(name for name in _MODELS if fnmatchcase(name, pattern))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    deploy: bool = False,
    features_only: bool = False,
    **config: Any,
) -> nn.Module:
    """Build a network by its name, with fresh weights, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the image.
        deploy: build the plain form that folding the train form leads to.
        features_only: return a list of feature maps instead of logits; `out_indices` in `config`
            chooses them (the network's `feature_info` says what they are).
        config: the family's own options.

    Raises:
        InputError: when there is no such network, or it has no such option.

    Examples:
        >>> net = create_model("mobileone_s0", num_classes=10)
        >>> net(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    require_kind("name", name, str, "one of list_models()")
    for what, number in (("num_classes", num_classes), ("in_chans", in_chans)):
        require_kind(what, number, int, "a whole number")
    entry, given = _entry(name), dict(config)
    if num_classes < 0 or in_chans < 1:
        raise InputError(
            f"{name}: num_classes must be at least 0 and in_chans at least 1, got {num_classes} "
            f"and {in_chans}"
        )
    has_own_features = "features_only" in entry.accepted
    out_indices = None if has_own_features else config.pop("out_indices", None)
    options = {**entry.options, **config, "num_classes": num_classes, "in_chans": in_chans}
    if has_own_features:
        options["features_only"] = features_only
    if "deploy" in entry.accepted:
        options["deploy"] = deploy
    _check_options(name, entry, options)
    model = entry.factory(**options)
    if features_only and not has_own_features:
        model = _as_features(name, model, out_indices)
    elif out_indices is not None:
        raise InputError(f"{name}: out_indices chooses feature maps: give features_only=True too")
    if not deploy or "deploy" in entry.accepted:
        return model
    again = partial(
        create_model, name, num_classes=num_classes, in_chans=in_chans,
        features_only=features_only, **given,
    )  # fmt: skip
    plain: Any = _folded(model)
    plain.train_form = TrainForm(again)  # so that `load_checkpoint` takes its weights, too
    return cast(nn.Module, plain)


def _entry(name: str) -> Entry:
    if name in _MODELS:
        return _MODELS[name]
    near = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "list_models() has the names"
    raise InputError(f"there is no model {name!r}; {hint}")


def _check_options(name: str, entry: Entry, options: Mapping[str, Any]) -> None:
    unknown = set() if entry.is_open else set(options) - entry.accepted
    if unknown:
        free = entry.accepted - {"num_classes", "in_chans", "deploy"}
        raise InputError(
            f"{name} has no option {', '.join(sorted(unknown))}; its own options are "
            f"{', '.join(sorted(free)) or 'none'}"
        )


def _as_features(name: str, model: nn.Module, out_indices: Any) -> nn.Module:
    if not isinstance(model, Backbone):
        raise InputError(f"{name} has no feature maps to return; leave features_only out")
    return model.as_features(out_indices)


def _folded(model: nn.Module) -> nn.Module:
    size = cast("dict[str, Any]", getattr(model, "default_cfg", {})).get("input_size")
    example = None if size is None else torch.zeros(1, *size)
    if isinstance(model, Backbone) and example is not None:
        return model.eval().deployed(example).train()
    return reparameterize(model.eval(), example).train()
