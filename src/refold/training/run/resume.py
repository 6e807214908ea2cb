"""How a run starts, and how a stopped one is resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from refold.errors import CheckpointError, InputError
from refold.files import sweep_staging
from refold.training.data.inventory import difference, inventory
from refold.training.run.begun import Begun

if TYPE_CHECKING:
    from refold.training.loop.engine import Engine
    from refold.training.loop.saves import Recovered
    from refold.training.recipes.recipe import Recipe
    from refold.training.run.setup import Order


def start(engine: Engine, order: Order, asked: Recipe) -> None:
    """Begin a run's folder, which is claimed.

    Args:
        engine: at its start.
        order: what is to be done.
        asked: the recipe before it was fitted to the images.

    Raises:
        InputError: when another run was started there meanwhile, or the folder is not writable.
    """
    folder = engine.folder
    if folder.writes:
        folder.require_new()
        sweep_staging(folder.path)
        begun = Begun(order.recipe, asked, order.place, order.model is not None)
        folder.begin(begun.config(), inventory(order.data, order.place))
    engine.accelerator.wait_for_everyone()


def go_on(engine: Engine, order: Order, begun: Begun, *, data_changed: bool) -> None:
    """Restore an engine from the newest intact checkpoint of its run; change no other.

    Args:
        engine: at its start.
        order: what is to be done.
        begun: what the run was started with.
        data_changed: whether the images may be others than before.

    Raises:
        InputError: when the images changed and `data_changed` is not set.
        CheckpointError: when there were checkpoints and all are damaged.
    """
    folder, saves, position = engine.folder, engine.saves, engine.parts.position
    images = None
    if folder.writes:
        images = _images(engine, order, data_changed=data_changed)
        sweep_staging(folder.path)
        saves.sweep()
    engine.accelerator.wait_for_everyone()
    found = saves.recover()
    engine.accelerator.wait_for_everyone()  # before anything changes that another one reads
    for text in found.notes:
        order.reporter.note(text)
    _restore(engine, order, found)
    if data_changed:
        position.unreadable = []  # numbers of other images, perhaps
    if engine.is_finished:
        order.reporter.note(
            f"every epoch of the run in {folder.path} is done: "
            "nothing is trained, the results are written again"
        )
    if not folder.writes:
        return
    saves.mend(found)
    folder.rewind(engine.done)
    if images is not None:
        folder.list_images(images)
    if order.place != begun.place:
        folder.configure(replace(begun, place=order.place).config())


def _restore(engine: Engine, order: Order, found: Recovered) -> None:
    """Load a checkpoint; without one the engine stays at its start.

    Raises:
        CheckpointError: when the run has none and must have had one.
    """
    folder, position = engine.folder, engine.parts.position
    if found.snapshot is not None:
        engine.parts.restore(found.snapshot)
        if found.best is None:
            position.best = position.best_loss = position.best_epoch = None
        # A checkpoint of an earlier version has not counted them.
        position.done = position.done or position.epoch * engine.order.steps + position.step
        return
    if folder.came_far():
        raise CheckpointError(
            f"{folder.path} has measured more than an epoch, and {engine.saves.folder} holds no "
            "checkpoint: restore one from a copy, or start over in another folder"
        )
    order.reporter.note(f"there is no checkpoint in {engine.saves.folder} yet: starting at step 0")


def _images(engine: Engine, order: Order, *, data_changed: bool) -> str | None:
    """Return the inventory of the present images if it must be written.

    Raises:
        InputError: when they are not those that the run was started with, and must be.
    """
    before, now = engine.folder.images(), inventory(order.data, order.place)
    if before is None:
        order.reporter.note(
            f"{engine.folder.path} has no list of its images, so changes cannot be detected"
        )
        return now
    changed = difference(before, now)
    if changed is None:
        return None
    if not data_changed:
        raise InputError(
            f"{order.place}: the images are not those that the run in {engine.folder.path} was "
            f"started with: {changed}; restore them, or pass --data-changed (data_changed=True) "
            "to continue with the present ones"
        )
    order.reporter.note(f"the images are not those of before: {changed}")
    return now
