"""From a recipe and a data set to an engine ready to run."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refold.blocks import recompute_branches
from refold.errors import InputError, MissingDependencyError
from refold.sources.networks import Builder
from refold.training.data.augment import eval_bytes, image_side, numbers, train_transform
from refold.training.data.datasets import Data, check_readable
from refold.training.data.loader import EvalOrder, Samples, TrainOrder, loader
from refold.training.loop.captured import check_capturable, make_capturable
from refold.training.loop.collectives import align
from refold.training.loop.engine import Engine
from refold.training.loop.feed import Feed
from refold.training.loop.learner import Learner, make_learner
from refold.training.loop.norms import sync_norms
from refold.training.loop.optim import make_optimizer
from refold.training.loop.penalties import Penalty, penalties_of
from refold.training.loop.progress import Reporter
from refold.training.loop.run_folder import RunFolder
from refold.training.loop.saves import Saves
from refold.training.loop.state import Parts, Position
from refold.training.recipes.recipe import Recipe
from refold.training.run.network import check_removable, check_usable, make_teacher
from refold.training.seeds import seeded
from refold.training.settings import Habits

_SHARED = ("NO", "MULTI_CPU", "MULTI_GPU")
_JUDGED_AT_ONCE = 256
_STEPS = 4  # of an epoch, where the images are too few for the recipe's batch


@dataclass(frozen=True)
class Order:
    """A run as it was ordered, its arguments resolved.

    Args:
        recipe: how to train.
        data: on what.
        place: where that is, in words.
        output: the run's folder.
        model: a network to train as it is; None to build the recipe's.
        build: what builds it; whatever MODEL may be where None.
        penalties: further ones than the recipe's.
        habits: how to behave.
        cpu: whether to leave a GPU alone.
        tracker: of Accelerate; "none" for none.
        reporter: receives progress.
    """

    recipe: Recipe
    data: Data
    place: str
    output: Path
    model: nn.Module | None
    build: Builder | None
    penalties: tuple[Penalty, ...]
    habits: Habits
    cpu: bool
    tracker: str
    reporter: Reporter


def make_accelerator(order: Order) -> Any:
    """Return Accelerate's view of the processes, the device and the precision.

    Raises:
        InputError: when they cannot be combined.
        MissingDependencyError: when Accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import ProjectConfiguration, parse_flag_from_env
    except ImportError as error:
        raise MissingDependencyError(
            "training needs Accelerate: run pip install 'refold[train]'"
        ) from error
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    recipe, folder = order.recipe, str(order.output)
    try:
        accelerator = Accelerator(
            cpu=order.cpu or not torch.accelerator.is_available(),
            mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
            gradient_accumulation_steps=recipe.accumulate,
            log_with=None if order.tracker == "none" else order.tracker,
            project_config=ProjectConfiguration(folder, logging_dir=f"{folder}/tracker"),
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"Accelerate refuses these settings: {error}") from error
    kind = accelerator.distributed_type.name
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):  # which Accelerate forgets on a CPU
        kind = "FSDP"
    if kind not in _SHARED:
        raise InputError(
            f"processes share the work as Accelerate's {kind}, whose checkpoints refold cannot "
            "write; use torchrun, or accelerate launch with --multi_gpu or --cpu, and for FSDP use "
            "refold train --fsdp (Habits(fsdp=True))"
        )
    if order.habits.fsdp and accelerator.num_processes == 1:
        raise InputError(
            "--fsdp (Habits(fsdp=True)) shards the weights, but there is only one process: "
            "start several with torchrun, or leave it out"
        )
    return accelerator


def default_tracker() -> str:
    """Return TensorBoard where it is installed."""
    return "tensorboard" if importlib.util.find_spec("tensorboard") else "none"


def fitted(order: Order, processes: int) -> Recipe:
    """Return the recipe with a batch that the images can fill and the processes can share.

    Raises:
        InputError: when the pieces are more than the images, or do not divide the batch.
    """
    recipe, images = order.recipe, len(order.data.train)
    pieces = processes * recipe.accumulate
    if images < pieces:
        raise InputError(
            f"{order.place} has {images} training images, too few for {processes} processes "
            f"and accumulate={recipe.accumulate}"
        )
    if recipe.batch_size % pieces and recipe.batch_size <= images:
        raise InputError(
            f"batch_size {recipe.batch_size} is not a multiple of {pieces}, which is {processes} "
            f"processes times accumulate={recipe.accumulate}"
        )
    if recipe.batch_size <= images:
        return recipe
    # Few images: some steps an epoch all the same, at a rate that suits the smaller batch.
    batch = max(images // _STEPS // pieces, 1) * pieces
    lr = recipe.optimizer.lr * batch / recipe.batch_size
    optimizer = recipe.optimizer.model_copy(update={"lr": lr})
    return recipe.model_copy(update={"batch_size": batch, "optimizer": optimizer})


def make_engine(
    order: Order,
    accelerator: Any,
    folder: RunFolder,
    image: tuple[int, ...],
    network: nn.Module,
) -> Engine:
    """Return the engine of a run: built, wrapped, at its start.

    Args:
        order: what is to be done, its recipe fitted.
        accelerator: of `make_accelerator`.
        folder: of the run.
        image: shape of one, as the network sees it.
        network: as it starts to train.

    Raises:
        InputError: when the network does not suit the images.
    """
    recipe, data, habits = order.recipe, order.data, order.habits
    processes, rank = accelerator.num_processes, accelerator.process_index
    network = network.to(accelerator.device)
    if recipe.channels_last:
        network.to(memory_format=torch.channels_last)
    if recipe.deploy.remove_residuals:
        check_removable(network, image)
    _check_habits(habits, recipe, network, accelerator)
    with seeded(recipe.seed, "loss"):
        teacher = None
        if recipe.distill is not None:
            teacher, notes = make_teacher(recipe, data, image)
            teacher = teacher.to(accelerator.device)
            for note in notes:
                order.reporter.note(note)
        learner = make_learner(network, recipe, len(data.classes), image, teacher)
    check_usable(network, image)
    align(accelerator, learner.to(accelerator.device))  # before the average copies it
    if processes > 1 and recipe.sync_norms:
        sync_norms(learner)
    average = None
    if recipe.ema is not None:
        from timm.utils.model_ema import ModelEmaV3

        average = ModelEmaV3(learner.network, recipe.ema)
    if habits.compile:
        learner.network.compile()
    prepare = _prepare
    if habits.fsdp:
        from refold.training.loop.fsdp import prepare_sharded as prepare
    parts, wrapped, optimizer = prepare(learner, average, recipe, accelerator)
    if habits.cuda_graph:
        make_capturable(parts.optimizer, recipe.optimizer.name, accelerator.device)
    pieces = processes * recipe.accumulate
    order_of = TrainOrder(len(data.train), recipe.batch_size, recipe.seed, pieces, rank, processes)
    train = Samples(data.train, train_transform(recipe.augment, data), recipe.seed)
    feed = Feed(
        loader(train, order_of, habits.workers),
        numbers(recipe.augment, data),
        accelerator.device,
        channels_last=recipe.channels_last,
    )
    judged = batches_to_judge(recipe, data, habits.workers, accelerator.device, rank, processes)
    return Engine(
        recipe=recipe, habits=habits, accelerator=accelerator, wrapped=wrapped,
        optimizer=optimizer, average=average, parts=parts,
        penalties=[*penalties_of(recipe), *order.penalties],
        order=order_of, batches=feed, judged=judged, classes=len(data.classes), folder=folder,
        saves=Saves(folder.path), reporter=order.reporter,
    )  # fmt: skip


def _check_habits(habits: Habits, recipe: Recipe, network: nn.Module, accelerator: Any) -> None:
    """Have the network's blocks compute as the habits say.

    Raises:
        InputError: when a habit does not suit the run.
    """
    if habits.cuda_graph:
        check_capturable(recipe, habits, accelerator.device, accelerator.num_processes)
    if habits.recompute and not recompute_branches(network):
        raise InputError(
            f"--recompute (Habits(recompute=True)) is for refold's blocks, and {recipe.model} has "
            "none: add --block, or leave it out"
        )


def _prepare(
    learner: Learner, average: Any, recipe: Recipe, accelerator: Any
) -> tuple[Parts, nn.Module, Any]:
    """Return what has a state, and learner and optimizer as Accelerate prepares them."""
    optimizer = make_optimizer(learner, recipe.optimizer, recipe.decay)
    averaged = average.module if average else None
    parts = Parts(learner, optimizer, averaged, accelerator.scaler, Position())
    wrapped, accelerated = accelerator.prepare(learner, optimizer)
    return parts, wrapped, accelerated


def batches_to_judge(
    recipe: Recipe,
    data: Data,
    workers: int,
    device: torch.device | str,
    rank: int = 0,
    processes: int = 1,
) -> Feed:
    """Return the validation images in batches, prepared as the recipe judges.

    Args:
        recipe: says how images are prepared, and how many a batch has at most.
        data: the images.
        workers: processes that read.
        device: where the network computes.
        rank: which of the processes that judge this is.
        processes: how many there are.
    """
    samples = Samples(data.val, eval_bytes(recipe.augment, data), recipe.seed)
    size = max(1, min(_JUDGED_AT_ONCE, recipe.batch_size // processes))
    batches = loader(samples, EvalOrder(len(data.val), size, rank, processes), workers)
    return Feed(batches, numbers(recipe.augment, data), device)


def image_shape(order: Order) -> tuple[int, ...]:
    """Return the shape of one image as the network sees it.

    Raises:
        InputError: when no image of train can be read.
    """
    check_readable(order.data)
    side = image_side(order.recipe.augment, order.data)
    return (order.data.channels, side, side)
