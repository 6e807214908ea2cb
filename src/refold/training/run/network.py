"""The network of a recipe, as it starts to train."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from refold.blocks import BranchedBlock
from refold.branches import block_factory, expand, expand_plan
from refold.checkpoint import MisfitError
from refold.equivalence import is_untrained, run_wide
from refold.errors import CheckpointError, InputError, one_line
from refold.folding import reparameterize
from refold.pruning import restore_norms
from refold.residuals import removal
from refold.sources.networks import Builder, brings_weights, build_to_train
from refold.training.data.augment import eval_transform, image_side
from refold.training.data.datasets import Data
from refold.training.data.loader import Samples
from refold.training.loop.freezing import freeze
from refold.training.loop.run_folder import RunFolder
from refold.training.loop.snapshot import read_snapshot
from refold.training.recipes.recipe import Recipe
from refold.training.run.about import known_data
from refold.training.run.begun import Begun, begun_with
from refold.training.run.heads import class_counts, fit_head, hand_over, without_head
from refold.training.run.weights import Weights, weights_at
from refold.training.seeds import seeded

_PLAIN, _NORMED, _WIDE = range(3)  # the forms of a network, each with what the one before lacks
_NO_HEAD = -1  # in place of a number of classes
_SEEN, _AT_ONCE = 256, 32  # images whose statistics restored norms start with


@dataclass(frozen=True)
class Start:
    """A network as it starts to train.

    Args:
        network: with its branches, in training mode.
        brings: whether it comes with weights, so that what it computes was kept.
        replaced: the names of layers that are new, as the classes are others.
        notes: a sentence for each thing that is not as was asked.
    """

    network: nn.Module
    brings: bool
    replaced: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def start_network(
    recipe: Recipe,
    data: Data,
    given: nn.Module | None = None,
    build: Builder | None = None,
    *,
    loads: bool = True,
) -> Start:
    """Return the network of a recipe, with its branches, as it starts to train.

    One that comes with weights (from a checkpoint, a factory, the caller) computes with branches
    what it did without; a new one has branches as the block starts them.

    Args:
        recipe: which network.
        data: the images, which say how many classes and channels.
        given: a network to take as it is; None to build the recipe's.
        build: what builds it; whatever MODEL may be where None.
        loads: whether to read the weights of the recipe's checkpoint; not where those of a run
            replace them.

    Raises:
        InputError: when it cannot be built, or has no convolution that can become a block.
        CheckpointError: when the checkpoint does not fit.
    """
    started = bool(recipe.checkpoint) or recipe.pretrained
    brings = started or given is not None or build is not None or brings_weights(recipe.model)
    plan = _Plan(recipe, data, given, build, brings)
    if loads and started:
        network, form, replaced = _pretrained(plan) if recipe.pretrained else _loaded(plan)
    else:
        network, form, replaced = plan.plain(plan.classes), _PLAIN, ()
    if given is None and plan.classes:
        side = image_side(recipe.augment, data)
        with seeded(recipe.seed, "head"):
            replaced += fit_head(network, plan.classes, (data.channels, side, side))
    if recipe.restore_norms and form < _NORMED:
        network = plan.normed(network, _images(recipe, data) if loads else None)
    if recipe.block is not None and form < _WIDE:
        network = plan.widened(network)
    notes = _set_scales(network, recipe, brings)
    freeze(network, recipe.freeze, norms=recipe.freeze_norms)
    return Start(network.train(), brings, replaced, notes)


def make_teacher(recipe: Recipe, data: Data, image: tuple[int, ...]) -> tuple[nn.Module, list[str]]:
    """Return the folded teacher of a recipe, which does not train, and what a run says of it.

    Args:
        recipe: which teacher.
        data: the images, whose classes it must know.
        image: shape of one, (C, H, W).

    Raises:
        InputError: when it has no weights, or other classes.
    """
    wanted = recipe.distill
    if wanted is None:
        raise InputError("the recipe has no teacher: give distill")
    if wanted.checkpoint is None and not brings_weights(wanted.teacher):
        raise InputError(
            f"the teacher {wanted.teacher} is untrained: give its weights with "
            "--teacher-checkpoint (distill.checkpoint)"
        )
    own = {
        "model": wanted.teacher, "options": wanted.options, "checkpoint": wanted.checkpoint,
        "pretrained": False, "block": None, "block_options": {}, "freeze": (),
        "freeze_norms": False, "restore_norms": False, "gamma": None, "slimming": None,
        "distill": None,
    }  # fmt: skip
    start = start_network(recipe.model_copy(update=own), data)
    if start.replaced:
        raise InputError(
            f"the teacher {wanted.teacher} was trained for other classes than the images have "
            f"({', '.join(start.replaced)} does not fit): give one that knows them"
        )
    notes = [f"learns from {wanted.teacher}, too: {wanted.weight:g} of the loss"]
    if is_untrained(start.network.eval()):
        notes.append(
            f"every norm of the teacher {wanted.teacher} still has its initial statistics, as if "
            "untrained: give its weights with --teacher-checkpoint (distill.checkpoint)"
        )
    teacher = reparameterize(start.network, torch.zeros(1, *image))
    return teacher.requires_grad_(False), notes


def built_anew(
    begun: Begun, data: Data, model: nn.Module | None = None, *, loads: bool
) -> nn.Module:
    """Return the network of a run as it started, in evaluation mode.

    Args:
        begun: what the run was started with.
        data: its images, of which the number of classes and the shape are asked.
        model: the network that was given to it, where one was.
        loads: whether the weights that it started from are wanted, too.
    """
    return start_network(begun.recipe, data, model, loads=loads).network.eval()


def network_at(run: Path, saved: Path) -> nn.Module:
    """Return the network of a run, built from its name, with the weights of one of its checkpoints.

    Args:
        run: its folder.
        saved: the checkpoint.

    Raises:
        InputError: when there is no such run, or its network was given to it.
        CheckpointError: when the checkpoint is damaged.
    """
    folder = RunFolder(run)
    begun = begun_with(folder, None)
    network = built_anew(begun, known_data(folder, begun), loads=False)
    network.load_state_dict(read_snapshot(saved).network)
    return network


def load_run(model: nn.Module, place: str | Path) -> tuple[str, ...]:
    """Load what a run trained into a model, without the run's branches where the model has none.

    Args:
        model: changed in place.
        place: the folder of a run, whose best weights are meant, or its `checkpoints/last`.

    Returns:
        What was done to the weights on the way.

    Raises:
        InputError: when there is no run.
        CheckpointError: when its weights do not fit; the model is then unchanged.
    """
    faults: list[CheckpointError] = []
    with weights_at(str(place), network_at) as weights:
        for file in weights.files():
            try:
                return weights.load(model, file)
            except CheckpointError as error:
                faults.append(error)
    raise min(faults, key=_distance)


def _distance(fault: CheckpointError) -> int:
    """Return how far weights are from a network: of several forms, the nearest tells most."""
    return fault.count if isinstance(fault, MisfitError) else 0


def remarks(start: Start, recipe: Recipe) -> Iterator[str]:
    """Yield what a user should know of how a network starts."""
    if recipe.checkpoint is not None:
        yield f"starts from the weights of {recipe.checkpoint}"
    if start.replaced:
        yield (
            f"new layers, as the weights have none for these classes: {', '.join(start.replaced)}; "
            "until they are trained, the answers are chance"
        )
    if recipe.restore_norms:
        yield "every convolution got a norm that changes nothing yet"
    if start.brings and recipe.block is not None:
        yield f"{recipe.block} branches were added so that the network computes what it did"
    yield from start.notes


@dataclass(frozen=True)
class _Plan:
    """How the network of a recipe is made."""

    recipe: Recipe
    data: Data
    given: nn.Module | None
    build: Builder | None
    brings: bool

    @property
    def classes(self) -> int:
        """How many outputs it has; 0 for an embedding."""
        return 0 if self.recipe.task == "embed" else len(self.data.classes)

    def plain(self, classes: int, **options: Any) -> nn.Module:
        """Return it without branches."""
        if self.given is not None:
            return self.given
        recipe, build = self.recipe, self.build or build_to_train
        options = {"in_chans": self.data.channels, **recipe.options, **options}
        with seeded(recipe.seed, "weights"):
            return build(recipe.model, num_classes=classes, **options)

    def normed(self, network: nn.Module, images: Iterable[Tensor] | None = None) -> nn.Module:
        """Return a network with a norm behind every convolution.

        Args:
            network: without norms.
            images: batches that give the norms their statistics; None where others replace them.

        Raises:
            InputError: when it has norms.
        """
        norms = [name for name, part in network.named_modules() if isinstance(part, BatchNorm)]
        if norms:
            raise InputError(
                f"restore_norms is for a network whose norms were folded, and {self.recipe.model} "
                f"has {len(norms)}, such as {norms[0]}: leave it out"
            )
        side = image_side(self.recipe.augment, self.data)
        blank = [torch.zeros(1, self.data.channels, side, side)]
        return restore_norms(network.eval(), blank if images is None else images)

    def widened(self, network: nn.Module) -> nn.Module:
        """Return a network with its branches.

        Raises:
            InputError: when no convolution can become a block.
        """
        recipe = self.recipe
        block = chosen_block(recipe.block or "", recipe.block_options)
        planned = expand_plan(network, block)
        if not planned.steps:
            reasons = "; ".join(f"{item.where}: {item.reason}" for item in planned.kept[:3])
            raise InputError(
                f"no convolution of {recipe.model} can become {recipe.block}: {reasons}"
            )
        with seeded(recipe.seed, "branches"):
            return expand(network, block, preserve=self.brings)


def _pretrained(plan: _Plan) -> tuple[nn.Module, int, tuple[str, ...]]:
    """Return a zoo's network with its published weights, and the layers that are new."""
    if plan.given is not None:
        raise InputError("pretrained is for a network by name: yours has its weights already")
    target = plan.plain(plan.classes)
    recipe, build = plan.recipe, plan.build or build_to_train
    source = build(recipe.model, in_chans=plan.data.channels, pretrained=True, **recipe.options)
    return target, _PLAIN, hand_over(source, target)


def _loaded(plan: _Plan) -> tuple[nn.Module, int, tuple[str, ...]]:
    """Return the network with the weights of the checkpoint, in whichever form they fit.

    Raises:
        CheckpointError: when they fit none.
    """
    with weights_at(str(plan.recipe.checkpoint), network_at) as weights:
        found = _fitting(plan, weights, [plan.classes])
        if isinstance(found, tuple):
            return found
        for file in weights.files():
            counts = class_counts(weights.state(file), plan.plain, plan.classes)
            other = _fitting(plan, weights, counts)
            if isinstance(other, tuple):
                return other
        bare = _fitting(plan, weights, [_NO_HEAD])
        if isinstance(bare, tuple):
            return bare
        raise found


def _fitting(
    plan: _Plan, weights: Weights, counts: list[int]
) -> tuple[nn.Module, int, tuple[str, ...]] | CheckpointError:
    """Load the weights into the network of one of some numbers of classes, or say why not.

    Args:
        plan: how the network is made.
        weights: to load.
        counts: numbers of classes; `_NO_HEAD` for a network without the layers that name them.
    """
    faults: list[CheckpointError] = []
    wanted = {_NORMED: plan.recipe.restore_norms, _WIDE: plan.recipe.block is not None}
    for count in counts:
        for form in (_PLAIN, *(form for form, is_wanted in wanted.items() if is_wanted)):
            network = _form(plan, count, form)
            for file in weights.files():
                try:
                    weights.load(network, file)
                except CheckpointError as error:
                    faults.append(error)
                    continue
                if count == plan.classes:
                    return network, form, ()
                target = _form(plan, plan.classes, form)
                return target, form, hand_over(network, target)
    missing = CheckpointError(f"{weights.place} fits no form of {plan.recipe.model}")
    return min(faults, key=_distance, default=missing)


def _form(plan: _Plan, classes: int, form: int) -> nn.Module:
    is_bare = classes == _NO_HEAD
    network = without_head(plan.plain, plan.classes) if is_bare else plan.plain(classes)
    if form >= _NORMED and plan.recipe.restore_norms:
        network = plan.normed(network)
    return plan.widened(network) if form == _WIDE else network


def _images(recipe: Recipe, data: Data) -> Iterator[Tensor]:
    """Yield batches of training images, spread over all of them, as evaluation prepares them."""
    samples = Samples(data.train, eval_transform(recipe.augment, data), recipe.seed)
    chosen = range(0, len(samples), -(-len(samples) // _SEEN))
    for first in range(0, len(chosen), _AT_ONCE):
        yield torch.stack([samples[0, index].image for index in chosen[first : first + _AT_ONCE]])


def chosen_block(name: str, options: dict[str, Any]) -> str | partial[nn.Module]:
    """Return a registered block with options of its own, as `expand` takes it.

    Raises:
        InputError: when there is no such block, or it has no such option.
    """
    if not options:
        return name
    factory = block_factory(name)
    known = inspect.signature(factory).parameters if isinstance(factory, type) else {}
    for option in options:
        if option not in known:
            raise InputError(
                f"block_options.{option}: {name} has no such option; it has {', '.join(known)}"
            )
    return partial(factory, **options)


def check_removable(network: nn.Module, image: tuple[int, ...]) -> None:
    """Check before a long training that every residual can be removed at its end.

    Raises:
        InputError: when one has to.
    """
    fresh = copy.deepcopy(network).cpu().eval()
    kept = removal(fresh, torch.zeros(1, *image)).kept
    if kept:
        reasons = "; ".join(f"{item.where}: {item.reason}" for item in kept[:3])
        raise InputError(
            f"deploy.remove_residuals cannot be done, {len(kept)} additions have to stay: {reasons}"
        )


def check_usable(network: nn.Module, image: tuple[int, ...]) -> None:
    """Check before a long training that checkpoints hold the network, and that it can be proved.

    Raises:
        InputError: when one cannot be.
    """
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} of this network is no tensor but of type {type(value).__name__}, which a "
                "checkpoint cannot hold: leave get_extra_state or quantized layers out"
            )
    try:
        run_wide(copy.deepcopy(network).cpu().eval().double(), (torch.zeros(1, *image),))
    except Exception as error:
        raise InputError(
            "this network cannot run in float64, where its fold is proved at the end: "
            f"{one_line(error)}"
        ) from error


def _set_scales(network: nn.Module, recipe: Recipe, brings: bool) -> tuple[str, ...]:
    """Start scales where the recipe wants them, unless that would undo what the weights compute."""
    slim = recipe.slimming.gamma if recipe.slimming is not None else None
    if brings:
        wanted = {"gamma": recipe.gamma, "slimming.gamma": slim}
        return tuple(
            f"{key} is left out: it is for a network that starts from random weights, and this one "
            "keeps what it computes"
            for key, value in wanted.items()
            if value is not None
        )
    for module in network.modules():
        if recipe.gamma is not None and isinstance(module, BranchedBlock):
            module.init_gamma(recipe.gamma)
        if slim is not None and isinstance(module, BatchNorm) and module.affine:
            nn.init.constant_(module.weight, slim)
    return ()
