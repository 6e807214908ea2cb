"""Networks with hooks of every kind."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from helpers.adversaries.base import Block, Norm, Table, Two, conv

HOOKS = Table()


def _enter(name: str, setup: Any, run: Any = Two.branches) -> None:
    def forward(s: Any, x: Any) -> Any:
        return run(s, x)

    forward.__name__ = name
    HOOKS.forward(setup)(forward)


class Box:
    """Carries a value from one place to another."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        self.values.append(output)


def both(a: Any, b: Any) -> Any:
    """Return b."""
    return b


def scaled(factor: float) -> Any:
    return lambda m, a, o: o * factor


def adds_child(m: Any, args: Any, output: Any) -> Any:
    return output + m.c1(args[0]).mean()


def early(m: Any, args: Any, output: Any) -> None:
    raise StopIteration(output)


def stopped(s: Any, x: Any) -> Any:
    try:
        s.branches(x)
    except StopIteration as stop:
        return stop.value * 2
    return x


def boxed(s: Any, x: Any) -> Any:
    box = vars(s)["box"]
    box.values.clear()
    y = s.branches(x)
    return y + sum(value.mean() for value in box.values)


def with_box(*names: str) -> Any:
    def setup(s: Any) -> None:
        s.box = Box()
        for name in names:
            s.get_submodule(name).register_forward_hook(s.box)

    return setup


def on(name: str, hook: Any, **options: Any) -> Any:
    return lambda s: s.get_submodule(name).register_forward_hook(hook, **options)


def before(name: str, hook: Any, **options: Any) -> Any:
    return lambda s: s.get_submodule(name).register_forward_pre_hook(hook, **options)


class Counts:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self, m: Any, a: Any, o: Any) -> Any:
        self.n += 1
        return o * self.n


def clamps(m: Any, args: Any) -> None:
    m.c1.weight.data.clamp_(-0.05, 0.05)


def grows(m: Any, args: Any) -> None:
    with torch.no_grad():
        m.weight *= 1.1


def sets_weight(m: Any, args: Any) -> None:
    m.weight = nn.Parameter(m.weight * 1.1)


def keeps(m: Any, a: Any, o: Any) -> None:
    m.kept = o.mean()


def switches(m: Any, args: Any) -> None:
    m.b1.eps = 0.7


CASES: dict[str, tuple[Any, ...]] = {
    "changes_output_of_layer": (on("c1", scaled(2.0)),),
    "changes_output_of_norm": (on("b1", scaled(2.0)),),
    "changes_output_of_root": (on("", scaled(2.0)),),
    "changes_input_of_layer": (before("c1", lambda m, a: (a[0] * 2,)),),
    "changes_input_of_norm": (before("b1", lambda m, a: a[0] + 1),),
    "changes_input_of_root": (before("", lambda m, a: (a[0] - 0.5,)),),
    "changes_in_place": (on("c1", lambda m, a, o: o.mul_(2)),),
    "changes_in_place_for_nobody": (on("c1", lambda m, a, o: both(o.mul_(2), None)),),
    "changes_input_in_place": (before("c1", lambda m, a: both(a[0].mul_(2), None)),),
    "root_changes_input_in_place": (before("", lambda m, a: both(a[0].mul_(2), None)),),
    "with_keywords": (on("c1", lambda m, a, k, o: o + len(k), with_kwargs=True),),
    "before_with_keywords": (before("", lambda m, a, k: ((a[0] * 2,), k), with_kwargs=True),),
    "always_called": (on("c1", scaled(3.0), always_call=True),),
    "prepended": (
        lambda s: (on("c1", scaled(3.0))(s), on("c1", lambda m, a, o: o + 1, prepend=True)(s)),
    ),
    "sees_only": (on("c1", lambda m, a, o: None),),
    "sees_norm_only": (on("b2", lambda m, a, o: None),),
    "counts": (lambda s: s.b1.register_forward_hook(Counts()),),
    "counts_on_root": (lambda s: s.register_forward_hook(Counts()),),
    "partial": (on("b1", functools.partial(lambda by, m, a, o: o * by, 2.0)),),
    "bound_method": (lambda s: s.c1.register_forward_hook(s.method),),
    "adds_output_of_child": (on("", adds_child),),
    "raises_to_stop": (on("b1", early), stopped),
    "raises_to_stop_at_layer": (on("c1", early), stopped),
    "carries_layer": (with_box("c1"), boxed),
    "carries_norm": (with_box("b1"), boxed),
    "carries_both": (with_box("c1", "b1", "c2"), boxed),
    "root_clamps_weight": (before("", clamps),),
    "layer_grows_weight": (before("c1", grows),),
    "norm_grows_weight": (before("b1", grows),),
    "replaces_weight": (before("c1", sets_weight),),
    "root_sets_eps": (before("", switches),),
    "keeps_on_module": (on("c1", keeps), lambda s, x: s.branches(x) + s.c1.kept),
    "keeps_on_norm": (on("b1", keeps), lambda s, x: both(y := s.branches(x), y + s.b1.kept)),
    "backward": (lambda s: s.b1.register_full_backward_hook(lambda m, a, o: None),),
    "backward_before": (lambda s: s.c1.register_full_backward_pre_hook(lambda m, o: None),),
    "root_backward": (lambda s: s.register_full_backward_hook(lambda m, a, o: None),),
    "of_a_tensor": (lambda s: None, lambda s, x: _hooked(s.branches(x.requires_grad_()))),
    "of_state": (lambda s: s._register_state_dict_hook(lambda *a: None),),
    "of_loading": (lambda s: s.register_load_state_dict_post_hook(lambda *a: None),),
    "pruned": (lambda s: prune.l1_unstructured(s.c1, "weight", 0.5),),
    "pruned_norm": (lambda s: prune.random_unstructured(s.b1, "weight", 2),),
    "pruned_for_good": (
        lambda s: prune.remove(prune.ln_structured(s.c1, "weight", 2, 2, 0), "weight"),
    ),
    "weight_norm": (lambda s: parametrizations.weight_norm(s.c1),),
    "weight_norm_of_old": (lambda s: old_weight_norm(s.c1),),
    "spectral_norm": (lambda s: parametrizations.spectral_norm(s.c1),),
    "spectral_norm_of_old": (lambda s: old_spectral_norm(s.c1),),
    "orthogonal": (
        lambda s: parametrizations.orthogonal(s.head),
        lambda s, x: s.head(s.branches(x)),
    ),
    "parametrized_bias": (
        lambda s: parametrize.register_parametrization(s.c1, "bias", nn.Softplus()),
    ),
    "parametrized_norm": (
        lambda s: parametrize.register_parametrization(s.b1, "weight", nn.Tanh()),
    ),
    "parametrized_by_input": (
        lambda s: parametrize.register_parametrization(s.c1, "weight", nn.Hardtanh(-0.1, 0.1)),
        lambda s, x: both(
            setattr(s.c1.parametrizations.weight[0], "max_val", 0.1 * x.shape[0]), s.branches(x)
        ),
    ),
}


def _hooked(y: Tensor) -> Tensor:
    if y.requires_grad:
        y.register_hook(lambda grad: grad * 2)
    return y


Two.method = lambda s, m, a, o: o * 2  # type: ignore[attr-defined]
for _name, _case in CASES.items():
    _enter(_name, *_case)


def _with_block(hook: Any, kind: str = "register_forward_hook", **options: Any) -> Any:
    def setup(s: Any) -> None:
        s.inner = Block()
        getattr(s.inner, kind)(hook, **options)

    return setup


def _inner(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


BLOCKS: dict[str, tuple[Any, ...]] = {
    "block_scales": (_with_block(scaled(2.0)), _inner),
    "block_sees": (_with_block(lambda m, a, o: None), _inner),
    "block_runs_its_layer": (_with_block(lambda m, a, o: o + m.conv(a[0])), _inner),
    "block_runs_its_norm": (_with_block(lambda m, a, o: m.norm(o)), _inner),
    "block_reads_its_norm": (_with_block(lambda m, a, o: o + m.norm.running_mean.sum()), _inner),
    "block_pre_scales": (_with_block(lambda m, a: a[0] * 2, "register_forward_pre_hook"), _inner),
    "block_makes_pair": (_with_block(lambda m, a, o: (o, o.mean())), lambda s, x: sum(s.inner(x))),
    "block_is_named_by_hook": (
        _with_block(lambda m, a, o: o * len(dict(m.named_modules()))),
        _inner,
    ),
}
for _name, _case in BLOCKS.items():
    _enter(_name, *_case)


# -- hooks of all modules; each is there during every run, the fold's too


def _everywhere(name: str, register: Any, hook: Any) -> None:
    """Enter a network whose forward hooks everything, runs and lets go."""

    def run(s: Any, x: Any) -> Any:
        handle = register(hook)
        try:
            return s.branches(x)
        finally:
            handle.remove()

    _enter(name, lambda s: None, run)


_everywhere(
    "everywhere_doubles",
    nn.modules.module.register_module_forward_hook,
    lambda m, a, o: o * 2 if isinstance(m, nn.Conv2d) else None,
)
_everywhere(
    "everywhere_before",
    nn.modules.module.register_module_forward_pre_hook,
    lambda m, a: (a[0] + 1,) if isinstance(m, Norm) else None,
)


def hooks_while_it_runs(s: Any, x: Any) -> Any:
    seen: list[Any] = []
    handle = s.b1.register_forward_hook(lambda m, a, o: seen.append(o))
    y = s.branches(x)
    handle.remove()
    return y + seen[0].mean()


_enter("hooks_while_it_runs", lambda s: None, hooks_while_it_runs)
_enter(
    "hooks_in_a_list",
    lambda s: (
        setattr(s, "m", nn.ModuleList([conv(), Norm(4)]))
        or s.m[0].register_forward_hook(scaled(2.0))
    ),
    lambda s, x: s.m[1](s.m[0](x)),
)
_enter(
    "hook_of_a_sequential",
    lambda s: (
        setattr(s, "m", nn.Sequential(conv(), Norm(4))) or s.m.register_forward_hook(scaled(2.0))
    ),
    lambda s, x: s.m(x) + s.one(x),
)
