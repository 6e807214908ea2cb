"""`refold.train`: from a recipe and images to a plain network, proved equal and written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from refold.errors import InputError, TrainingError, require_kind
from refold.files import require_named
from refold.sources.networks import Builder
from refold.sources.pruned import is_pruned
from refold.sources.runs import run_at
from refold.training import recipes
from refold.training.data.datasets import DIGITS, open_data
from refold.training.loop.penalties import Penalty
from refold.training.loop.progress import Reporter, RunPlan
from refold.training.loop.run_folder import RunFolder
from refold.training.loop.saves import Saves
from refold.training.recipes.cookbook import changed, check_recipe, load_recipe
from refold.training.run.begun import Begun, begun_with
from refold.training.run.claim import claim, require_unclaimed
from refold.training.run.inherited import INHERITED, inherited
from refold.training.run.recipe_differences import require_same
from refold.training.run.resume import go_on, start
from refold.training.settings import Habits

if TYPE_CHECKING:
    from refold.training.loop.engine import Engine
    from refold.training.run.setup import Order


@dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Args:
        folder: of the run.
        summary: what came out, as `summary.json` holds it; the plan alone after a dry run.
        model: the form that trained, with the weights of its best epoch, in evaluation mode.
        deployed: the plain form, equal to it.
    """

    folder: Path
    summary: dict[str, Any]
    model: nn.Module | None = None
    deployed: nn.Module | None = None


def train(
    recipe: str | Path | recipes.Recipe | None = None,
    *,
    output: str | Path,
    data: str | Path | None = None,
    model: nn.Module | str | None = None,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    changes: Mapping[str, Any] | None = None,
    penalties: Iterable[Penalty] = (),
    resume: bool = False,
    data_changed: bool = False,
    dry_run: bool = False,
    cpu: bool = False,
    tracker: str | None = None,
    habits: Habits | None = None,
    reporter: Reporter | None = None,
    build: Builder | None = None,
) -> Trained:
    """Train a network by a recipe, fold it, prove the fold exact, and write both results.

    Everything random follows from the recipe's seed, so a run that was killed and resumed ends with
    the same weights, bit by bit on a CPU with the same number of threads, as one that was not, for
    any number of loader workers. Under `torchrun` the processes share each batch.

    Args:
        recipe: a name of `refold.training.list_recipes()`, a YAML file, or a `Recipe`; "digits"
            without `data`, "folder" with it.
        output: the run's folder: settings, measurements, checkpoints, deployed files, summary.
        data: a folder of images, or "digits", which come with the package.
        model: a network to train as it is, or the name of one: of `list_models()`, `timm:NAME`,
            `torchvision:NAME`, `hf:FOLDER`, `path/to/file.py:factory`; the recipe's where None.
        checkpoint: weights to start from: a file that `load_checkpoint` reads, the folder of a run
            (its best epoch), or one of its checkpoints. A layer that has other classes is new.
        num_classes: how many classes the images must have; any number where None.
        changes: values that replace the recipe's, by dotted key (`optimizer.lr`).
        penalties: functions of the network whose value is added to the loss.
        resume: continue the run in `output` with its own settings; any others given must match.
        data_changed: continue even if the images are not those that the run was started with.
        dry_run: set up, take one step, estimate how long the run would take; write nothing.
        cpu: leave a GPU alone.
        tracker: of Accelerate's; TensorBoard where it is installed, "none" for none.
        habits: when to save and to measure, and how many processes read images.
        reporter: receives progress.
        build: what builds a network from its name, perhaps with weights; where None, MODEL is what
            it is on the command line.

    Raises:
        InputError: when the recipe, the images or the network cannot be used; the message names the
            file or the key.
        DivergedError: when the loss becomes NaN or infinite.
        TrainingError: when the disk is full.
        NotEquivalentError: when the folded network is not equal.
        Stopped: a KeyboardInterrupt: a signal asked to stop, and the step is finished and saved.
        MissingDependencyError: when an optional library is missing.

    Examples:
        >>> import tempfile, refold
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = refold.train("digits", output=f"{folder}/run", dry_run=True)
        >>> run.summary["images"], run.summary["classes"]
        (4000, 10)
    """
    require_named("output", output)
    require_kind("penalties", penalties, Iterable, "several functions")
    require_kind("changes", changes or {}, Mapping, "a mapping of keys to values")
    require_kind("habits", habits or Habits(), Habits, "refold.training.Habits")
    folder = RunFolder(Path(output))
    given = _network(model)
    named = {"model": model} if isinstance(model, str) else {}
    if checkpoint is not None:
        named["checkpoint"] = str(checkpoint)
    every = _placed({**named, **(changes or {})})
    if not dry_run:
        _require_free(folder, resume=resume)
    if resume:
        begun = begun_with(folder, given)
        require_same(begun, _again(recipe, begun.asked, every), folder.path)
        chosen, place = begun.recipe, place_of(begun.place if data is None else data)
    else:
        begun, place = None, place_of(DIGITS if data is None else data)
        chosen = _chosen(recipe, place, every)
        if given is not None and "model" not in every:  # a name for people, no change of the recipe
            chosen = chosen.model_copy(update={"model": type(given).__name__})
    from refold.training.run import setup

    images = open_data(place, chosen.task)
    if num_classes not in (None, len(images.classes)):
        raise InputError(f"{place} has {len(images.classes)} classes, not {num_classes}")
    order = setup.Order(
        recipe=chosen,
        data=images,
        place=place,
        output=folder.path,
        model=given,
        build=build,
        penalties=tuple(penalties),
        habits=habits or Habits(),
        cpu=cpu,
        tracker="none" if dry_run else tracker or setup.default_tracker(),
        reporter=reporter or Reporter(),
    )
    with torch.inference_mode(mode=False), torch.enable_grad():  # whatever a caller switched off
        return _run(order, begun, dry_run=dry_run, data_changed=data_changed)


def _require_free(folder: RunFolder, *, resume: bool) -> None:
    """Refuse a folder that another process trains in, or that holds a run where none is resumed.

    Raises:
        InputError: then.
    """
    require_unclaimed(folder.path)
    if not resume:
        folder.require_new()


def _placed(changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes with absolute paths: a run may be resumed from another folder."""
    found = dict(changes)
    for key in ("model", "checkpoint", "distill.teacher", "distill.checkpoint"):
        value = found.get(key)
        if isinstance(value, str) and (key.endswith("checkpoint") or _is_place(value)):
            found[key] = os.path.abspath(value)  # noqa: PTH100 (keeps links)
    return found


def _network(model: Any) -> nn.Module | None:
    """Return the network that was given; None for a name, or for none."""
    if model is None or isinstance(model, str | nn.Module):
        return model if isinstance(model, nn.Module) else None
    what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    raise InputError(f"model must be a network, or the name of one, got {what}")


def _is_place(model: str) -> bool:
    return ".py:" in model or is_pruned(model) or run_at(model) is not None


def place_of(data: str | Path) -> str:
    """Return where the images are, whatever folder the run is resumed from.

    Raises:
        InputError: when it is an empty text, which would be the current folder.
    """
    require_named("data", data)
    return DIGITS if str(data) == DIGITS else os.path.abspath(data)  # noqa: PTH100 (keeps links)


def _chosen(
    recipe: str | Path | recipes.Recipe | None, place: str, changes: dict[str, Any]
) -> recipes.Recipe:
    if recipe is None:
        recipe = "digits" if place == DIGITS else "folder"
    chosen = _wanted(recipe, None, changes)
    return _with(chosen, inherited(chosen, chosen.checkpoint, chosen.model))


def _again(
    recipe: str | Path | recipes.Recipe | None, begun: recipes.Recipe, changes: dict[str, Any]
) -> recipes.Recipe:
    """Return what is asked of a resumed run, with what it took over from the run before it."""
    wanted = _wanted(recipe, begun, changes)
    if begun.checkpoint is None and not Path(begun.model).is_absolute():  # its place may be gone
        return wanted
    open_ = [key for key in INHERITED if getattr(wanted.augment, key) is None]
    return _with(wanted, {f"augment.{key}": getattr(begun.augment, key) for key in open_})


def _with(recipe: recipes.Recipe, changes: Mapping[str, Any]) -> recipes.Recipe:
    return check_recipe(changed(recipe.model_dump(mode="json"), changes), recipe.name)


def _wanted(
    recipe: str | Path | recipes.Recipe | None,
    other: recipes.Recipe | None,
    changes: dict[str, Any],
) -> recipes.Recipe:
    """Return a recipe with changes; the default one where there is none."""
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe, changes)
    chosen = cast("recipes.Recipe", recipe or other)
    if not hasattr(chosen, "model_dump"):
        raise InputError(f"recipe must be a name, a path or a Recipe, got {type(chosen).__name__}")
    return check_recipe(changed(chosen.model_dump(mode="json"), changes), chosen.name)


def _run(order: Order, begun: Begun | None, *, dry_run: bool, data_changed: bool) -> Trained:
    from refold.training.run import setup
    from refold.training.run.network import remarks, start_network

    accelerator = setup.make_accelerator(order)
    main = bool(accelerator.is_main_process)
    folder = RunFolder(order.output, writes=main and not dry_run)
    asked = order.recipe
    order = replace(
        order,
        recipe=setup.fitted(order, accelerator.num_processes),
        reporter=order.reporter if main else Reporter(),
    )
    image = setup.image_shape(order)
    made = start_network(
        order.recipe, order.data, order.model, order.build,
        loads=begun is None or not Saves(folder.path).began(),
    )  # fmt: skip
    engine = setup.make_engine(order, accelerator, folder, image, made.network)
    for text in remarks(made, order.recipe):
        order.reporter.note(text)
    if order.recipe.batch_size != asked.batch_size:
        order.reporter.note(
            f"batch_size is {order.recipe.batch_size} instead of {asked.batch_size}, as there are "
            f"{len(order.data.train)} images, and optimizer.lr {order.recipe.optimizer.lr:.3g} "
            f"instead of {asked.optimizer.lr:.3g}"
        )
    if dry_run:
        plan = _plan(order, engine, image, None)
        order.reporter.begin(plan)
        return Trained(folder.path, vars(plan) | {"seconds_per_step": engine.rehearse()})
    with claim(folder.path) if folder.writes else nullcontext():
        if begun is None:
            start(engine, order, asked)
        else:
            go_on(engine, order, begun, data_changed=data_changed)
        resumed = None if begun is None else engine.done
        return _trained(order, engine, image, resumed=resumed, judged=made.brings)


def _trained(
    order: Order, engine: Engine, image: tuple[int, ...], *, resumed: int | None, judged: bool
) -> Trained:
    from refold.training.run.finish import finish

    accelerator = engine.accelerator
    if order.tracker != "none":
        _open_board(accelerator, resumed)
    order.reporter.begin(_plan(order, engine, image, resumed))
    try:
        if judged:
            engine.judge_start()
        engine.run()
    finally:
        order.reporter.end()
        # Not `end_training`, which also ends the process group: folding and evaluation need it.
        for board in accelerator.trackers:
            with suppress(OSError):  # the engine has reported a full disk
                board.finish()
    done = finish(engine, order.data, image)
    return Trained(engine.folder.path, done.summary, done.network, done.deployed)


def _open_board(accelerator: Any, resumed: int | None) -> None:
    """Start a tracker; TensorBoard drops what was logged after the step of a resumed run.

    Raises:
        TrainingError: when it cannot write.
    """
    options = {} if resumed is None else {"tensorboard": {"purge_step": resumed + 1}}
    try:
        accelerator.init_trackers("refold", init_kwargs=options)
    except OSError as error:
        raise TrainingError(
            f"the tracker cannot write to {accelerator.logging_dir} ({error.strerror or error}): "
            "make room, or pass --tracker none"
        ) from error


def _plan(order: Order, engine: Engine, image: tuple[int, ...], resumed: int | None) -> RunPlan:
    return RunPlan(
        model=order.recipe.model,
        parameters=sum(p.numel() for p in engine.learner.network.parameters()),
        data=order.place,
        images=len(order.data.train),
        judged=len(order.data.val),
        classes=len(order.data.classes),
        image=image,
        epochs=order.recipe.epochs,
        steps=engine.order.steps,
        batch=order.recipe.batch_size,
        processes=engine.accelerator.num_processes,
        device=str(engine.accelerator.device),
        resumed=resumed,
    )
