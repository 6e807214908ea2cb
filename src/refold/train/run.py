"""`refold.train`: from a recipe and images to a plain network, proved equal and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from refold.train.cookbook import changed, check_recipe, load_recipe
from refold.train.data import DIGITS, open_data
from refold.train.folder import RunFolder
from refold.train.habits import Habits
from refold.train.penalties import Penalty
from refold.train.report import Plan, Reporter
from refold.train.restore import begun_with

if TYPE_CHECKING:
    from refold.train.engine import Engine
    from refold.train.network import Builder
    from refold.train.recipe import Recipe
    from refold.train.setup import Order


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
    recipe: str | Path | Recipe | None = None,
    *,
    output: str | Path,
    data: str | Path | None = None,
    model: nn.Module | str | None = None,
    changes: Mapping[str, Any] | None = None,
    penalties: Iterable[Penalty] = (),
    resume: bool = False,
    dry_run: bool = False,
    cpu: bool = False,
    tracker: str | None = None,
    habits: Habits | None = None,
    reporter: Reporter | None = None,
    build: Builder | None = None,
) -> Trained:
    """Train a network by a recipe, fold it, prove the fold exact, and write both results.

    Everything random follows from the recipe's seed, so a run that was killed and goes on ends with
    the same weights, bit by bit on a CPU with the same number of threads, as one that was not, for
    any number of loader workers. Under `torchrun` the processes share each batch.

    Args:
        recipe: a name of `refold.train.list_recipes()`, a YAML file, or a `Recipe`; "digits"
            without `data`, "folder" with it.
        output: the run's folder: settings, measurements, checkpoints, deployed files, summary.
        data: a folder of images, or "digits", which come with the package.
        model: a network to train as it is, or the name of one of `list_models()`; the recipe's
            where None.
        changes: values that replace the recipe's, by dotted key (`optimizer.lr`).
        penalties: functions of the network whose value is added to the loss.
        resume: go on with the run in `output`, by the settings that it was begun with.
        dry_run: set all up, take one step, say how long the run would take; write nothing.
        cpu: leave a GPU alone.
        tracker: of Accelerate's; TensorBoard where it is installed, "none" for none.
        habits: when to save and to measure, and how many processes read images.
        reporter: is told how it goes.
        build: what builds a network from its name; `create_model` where None.

    Raises:
        InputError: when the recipe, the images or the network are of no use; the message names the
            file or the key.
        DivergedError: when the loss is no number any more.
        TrainingError: when the disk is full.
        NotEquivalentError: when the folded network is not equal.
        KeyboardInterrupt: when asked to stop (Ctrl-C), after the step is finished and saved.
        MissingDependencyError: when an optional library is missing.

    Examples:
        >>> import tempfile, refold
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = refold.train("digits", output=f"{folder}/run", dry_run=True)
        >>> run.summary["images"], run.summary["classes"]
        (4000, 10)
    """
    folder = RunFolder(Path(output))
    given = model if isinstance(model, nn.Module) else None
    if resume:
        chosen, place = begun_with(folder, given)
    else:
        if not dry_run:
            folder.require_new()
        named = {"model": model} if isinstance(model, str) else {}
        if given is not None:
            named = {"model": type(given).__name__}
        place = str(data or DIGITS)
        chosen = _chosen(recipe, place, {**named, **(changes or {})})
    from refold.train import setup
    from refold.train.network import ours

    order = setup.Order(
        recipe=chosen,
        data=open_data(place, chosen.task),
        place=place,
        output=folder.path,
        model=given,
        build=build or ours,
        penalties=tuple(penalties),
        habits=habits or Habits(),
        cpu=cpu,
        tracker="none" if dry_run else tracker or setup.default_tracker(),
        reporter=reporter or Reporter(),
    )
    return _run(order, folder, resume=resume, dry_run=dry_run)


def _chosen(recipe: str | Path | Recipe | None, place: str, changes: dict[str, Any]) -> Recipe:
    if recipe is None:
        recipe = "digits" if place == DIGITS else "folder"
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe, changes)
    return check_recipe(changed(recipe.model_dump(mode="json"), changes), recipe.name)


def _run(order: Order, folder: RunFolder, *, resume: bool, dry_run: bool) -> Trained:
    from refold.train import setup
    from refold.train.finish import finish

    accelerator = setup.make_accelerator(order)
    main = bool(accelerator.is_main_process)
    folder = RunFolder(folder.path, writes=main and not dry_run)
    asked = order.recipe
    order = replace(
        order,
        recipe=setup.fitted(order, accelerator.num_processes),
        reporter=order.reporter if main else Reporter(),
    )
    image = setup.image_shape(order)
    engine = setup.make_engine(order, accelerator, folder, image)
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
    resumed = _start(order, engine, resume=resume)
    if order.tracker != "none":
        accelerator.init_trackers("refold")
    order.reporter.begin(_plan(order, engine, image, resumed))
    try:
        engine.run()
    finally:
        order.reporter.end()
        # Not `end_training`, which ends the processes' group, too: folding and judging need it.
        for board in accelerator.trackers:
            board.finish()
    done = finish(engine, order.data, image)
    return Trained(folder.path, done.summary, done.network, done.deployed)


def _start(order: Order, engine: Engine, *, resume: bool) -> int | None:
    """Begin the run's folder, or go on from its last checkpoint; return the step of that."""
    if not resume:
        engine.folder.begin(
            {
                "data": order.place,
                "given_model": order.model is not None,
                "recipe": order.recipe.model_dump(mode="json"),
            }
        )
        engine.accelerator.wait_for_everyone()
        return None
    if engine.folder.writes:
        engine.saves.clean()
    engine.accelerator.wait_for_everyone()
    snapshot = engine.saves.read()
    if snapshot is not None:
        engine.parts.restore(snapshot)
    engine.folder.rewind(engine.done)
    return engine.done


def _plan(order: Order, engine: Engine, image: tuple[int, ...], resumed: int | None) -> Plan:
    return Plan(
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
