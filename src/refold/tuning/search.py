"""Try the exact forms of a network one after the other, and keep what is clearly faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Any

from torch import nn

from refold.bench import RUNTIMES, describe_machine
from refold.errors import InputError, RefoldError
from refold.graph import Fold, duplicate, fold_model, unwrap
from refold.inputs import Arguments, required, tensors
from refold.planning import Plan
from refold.tuning.choices import Choices, digest, tuned
from refold.tuning.measuring import Measure, Speed, by_clock
from refold.tuning.outcome import Trial, Tuning

GAIN = 1.01
"""What a choice must gain at least, at the lower end of its interval."""

_Progress = Callable[[str], None]


def tune(
    model: nn.Module,
    example_inputs: Any,
    *,
    runtime: str = "eager",
    rounds: int = 30,
    trials: int = 12,
    measure: Measure | None = None,
    progress: _Progress | None = None,
) -> Tuning:
    """Return the fastest of a network's exact forms in a runtime, as far as measuring tells.

    The plain fold comes first; it stays unless it is shown to be slower than the unfolded network.
    Every further choice is timed against the best form so far, in turn, and adopted when it is
    faster by more than the noise. In the end the result is timed once more: against the first form,
    which it gives way to where a choice had won by chance, and against the unfolded network; where
    it is shown to be slower than that, nothing is folded.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: what is timed: a tensor, a tuple or list of arguments, or a mapping.
        runtime: `eager`, `onnxruntime`, `openvino` or another of `refold.benchmark`.
        rounds: how often each of two forms is timed.
        trials: how many alternatives of single parts are tried, the most expensive parts first.
        measure: compares two networks instead of the clock.
        progress: is told what is tried next.

    Raises:
        InputError: when the runtime is unknown, or the model cannot run on the example.
        RefusedError: when the model is in training mode.

    Exact when:
        always: each form is one that `reparameterize` or `remove_residuals` makes.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> found = tune(net, torch.zeros(1, 3, 8, 8), measure=lambda old, new: Speed(1.1, 1.2, 2))
        >>> found.speed.median, found.choices.folded
        (1.2, True)
    """
    if runtime not in RUNTIMES or rounds < 1 or trials < 0:
        raise InputError(
            f"tune got the runtime {runtime!r}, {rounds} rounds and {trials} trials; give at least "
            f"one round, no negative number of trials, and a runtime among {', '.join(RUNTIMES)}"
        )
    inputs = required(model, example_inputs)
    search = _Search(
        unwrap(model),
        inputs,
        by_clock(inputs, runtime, rounds) if measure is None else measure,
        progress or _say_nothing,
    )
    search.run(runtime, trials)
    return Tuning(
        search.best,
        runtime,
        digest(model),
        tuple(tuple(tensor.shape) for tensor in tensors(inputs)),
        str(describe_machine(search.model, inputs, (runtime,))),
        tuple(search.trials),
        search.gain,
        search.form,
    )


def _say_nothing(text: str) -> None:
    del text


class _Search:
    """The best form so far, and how it was found."""

    def __init__(
        self, model: nn.Module, inputs: Arguments, measure: Measure, progress: _Progress
    ) -> None:
        self.model, self.inputs = model, inputs
        self.measure, self.progress = measure, progress
        self.trials: list[Trial] = []
        self.plain = Choices(folded=False)
        self.unfolded = duplicate(model)
        self.gain: Speed | None = None
        plan = tuned(model, inputs, Choices())
        self.best, self.form, self.plan = Choices(), plan.model, plan

    def run(self, runtime: str, trials: int) -> None:
        """Try everything: the whole first, then its parts."""
        self._keep_unless_slower("fold")
        first = self.best, self.form
        if self.best.folded:
            self._try("without residuals", replace(self.best, without_residuals=True))
        if RUNTIMES[runtime].keeps_layout:
            self._try("channels last", replace(self.best, channels_last=True))
        if self.best.folded and not self.best.without_residuals:
            self._parts(trials)
        if self.best is not first[0] and self._is_faster_than(*first):
            self._keep_unless_slower("all of it")

    def _parts(self, trials: int) -> None:
        """Try other forms of single parts, the most expensive first."""
        choices = [*_merged(self.plan), *_costlier(self.model, self.inputs, self.plan)]
        choices.sort(key=lambda choice: -choice[0])
        for _, name, field, places in choices[:trials]:
            known: tuple[str, ...] = getattr(self.best, field)
            self._try(name, replace(self.best, **{field: (*known, *places)}))

    def _keep_unless_slower(self, name: str) -> None:
        """Time the best form against the unfolded network, and fall back on that where it wins."""
        self.progress(name)
        trial = self._timed(name, self.unfolded, self.form, lambda speed: speed.high >= 1)
        self.gain = trial.speed
        if not trial.adopted:
            self.best, self.form = self.plain, self.unfolded
            self.gain = Speed(1.0, 1.0, 1.0)

    def _is_faster_than(self, choices: Choices, form: nn.Module) -> bool:
        """Time the best form against the first once more, and fall back on that unless it wins."""
        name = "all choices, beside none"
        self.progress(name)
        trial = self._timed(name, form, self.form, lambda speed: speed.low > 1)
        if not trial.adopted:
            self.best, self.form = choices, form
        return trial.adopted

    def _try(self, name: str, choices: Choices) -> None:
        """Build another form, time it, and adopt it when it is surely faster."""
        self.progress(name)
        try:
            plan = tuned(self.model, self.inputs, choices)
        except RefoldError as error:
            self.trials.append(Trial(name, None, False, str(error)))
            return
        if choices.without_residuals and not plan.steps:
            return  # there are none
        if self._timed(name, self.form, plan.model, lambda speed: speed.low > GAIN).adopted:
            self.best, self.form = choices, plan.model

    def _timed(
        self, name: str, old: nn.Module, new: nn.Module, wins: Callable[[Speed], bool]
    ) -> Trial:
        """Note how a form does beside another; one that could not be timed never wins."""
        speed = self.measure(old, new)
        failed = isinstance(speed, str)
        trial = Trial(name, None, False, speed) if failed else Trial(name, speed, wins(speed))
        self.trials.append(trial)
        return trial


_Part = tuple[int, str, str, tuple[str, ...]]  # multiply-adds, what is tried, where it is noted


def _merged(plan: Plan) -> Iterator[_Part]:
    """Yield, for each kind of merged branches, the choice to leave them apart."""
    for key, steps in _alike(plan.groups["merged"]).items():
        places = tuple(dict.fromkeys(map(_place, steps)))
        yield key[-1], f"branches apart: {_named(places)}", "apart", places


def _costlier(model: nn.Module, inputs: Arguments, plan: Plan) -> Iterator[_Part]:
    """Yield, for each kind of merge that needs more multiply-adds, the choice to make it."""
    if not any(item.costlier for item in plan.kept):
        return
    done = fold_model(model, inputs, allow_growth=True)
    known = {(step.where, step.rule) for step in plan.steps}
    fresh = [step for step in done.folds if (step.where, step.rule) not in known]
    grown = tuple(s for s in fresh if (s.macs_after or 0) > (s.macs_before or 0))
    for key, steps in _alike(grown).items():
        places = tuple(dict.fromkeys(map(_place, steps)))
        yield key[-1], f"merge at more multiply-adds: {_named(places)}", "grown", places


def _alike(steps: tuple[Fold, ...]) -> dict[tuple[Any, ...], list[Fold]]:
    """Return steps by what they do: equal blocks get one choice. The multiply-adds come last."""
    found: dict[tuple[Any, ...], list[Fold]] = {}
    for step in steps:
        macs = (step.macs_before or 0, step.macs_after or 0)
        key = (step.rule, step.parameters_before, step.parameters_after, *macs, max(macs))
        found.setdefault(key, []).append(step)
    return found


def _place(step: Fold) -> str:
    """Return the path of the smallest part that all layers of a step lie in."""
    paths = [path.split(".") for path in (step.made_of or (step.where,))]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return ".".join(names[0] for names in shared)


def _named(places: tuple[str, ...]) -> str:
    first, rest = places[0] or "the whole network", len(places) - 1
    return f"{first} and {rest} like it" if rest else first
