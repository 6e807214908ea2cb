"""Prune, train on, deploy: one run, which begins with a pruned network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refold.errors import InputError
from refold.exporting import export
from refold.files import require_named, write_json
from refold.pruning import Pruning
from refold.sources.networks import note_origin
from refold.sources.pruned import Origin
from refold.training import recipes
from refold.training.data.augment import image_side
from refold.training.data.datasets import DIGITS, Data, open_data
from refold.training.loop.evaluation import judge
from refold.training.loop.learner import outputs
from refold.training.loop.progress import Reporter
from refold.training.loop.run_folder import PRUNED, PRUNING, RunFolder
from refold.training.recipes.cookbook import load_recipe
from refold.training.run.claim import require_unclaimed
from refold.training.run.inherited import inherited
from refold.training.run.run import Trained, place_of, train
from refold.training.settings import Habits


@dataclass(frozen=True)
class Course:
    """How a pruned network is to be trained on, checked before anything is pruned.

    Args:
        recipe: its name or file.
        place: of the images.
        changes: of the recipe, by dotted key.
        output: the run's folder.
        habits: how to behave.
        cpu: whether to leave a GPU alone.
        tracker: of Accelerate; None for TensorBoard where it is installed.
        reporter: receives progress.
    """

    recipe: str | Path
    place: str
    changes: Mapping[str, Any]
    output: Path
    habits: Habits
    cpu: bool
    tracker: str | None
    reporter: Reporter

    @property
    def chosen(self) -> recipes.Recipe:
        """The recipe with its changes."""
        return load_recipe(self.recipe, self.changes)

    @property
    def data(self) -> Data:
        """The images."""
        return open_data(self.place, self.chosen.task)

    @property
    def image(self) -> tuple[int, ...]:
        """The shape of one image, as the network sees it."""
        data, side = self.data, image_side(self.chosen.augment, self.data)
        return (data.channels, side, side)


def plan_course(
    *,
    output: str | Path,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    weights: Sequence[str | None] = (),
    changes: Mapping[str, Any] | None = None,
    habits: Habits | None = None,
    cpu: bool = False,
    tracker: str | None = None,
    reporter: Reporter | None = None,
) -> Course:
    """Return how a pruned network is to be trained on; the arguments are those of `train`.

    Args:
        output: the run's folder.
        data: a folder of images, or "digits".
        recipe: a name or a YAML file; "digits" without `data`, "finetune" with it.
        weights: where the network's come from: where that is a run, its images are prepared as it
            does, unless the recipe says how.
        changes: values that replace the recipe's, by dotted key.
        habits: when to save and to measure, and how many processes read images.
        cpu: leave a GPU alone.
        tracker: of Accelerate's.
        reporter: receives progress.

    Raises:
        InputError: when the folder, the recipe or the images cannot be used.
    """
    require_named("output", output)
    place = place_of(DIGITS if data is None else data)
    name = recipe or ("digits" if place == DIGITS else "finetune")
    wanted = {**(changes or {}), "restore_norms": True}
    course = Course(
        name,
        place,
        wanted | inherited(load_recipe(name, wanted), *weights),
        Path(output),
        habits or Habits(),
        cpu,
        tracker,
        reporter or Reporter(),
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "several processes cannot prune together: prune in one, and train on what it wrote "
            "with torchrun -m refold train --model FILE.safetensors --set restore_norms=true"
        )
    require_unclaimed(course.output)
    RunFolder(course.output).require_new()
    _ = course.data, course.chosen
    return course


def judge_before(network: nn.Module, course: Course) -> dict[str, float]:
    """Return what a network achieves on the validation images, before it is pruned.

    Raises:
        InputError: when it does not answer with the classes of the images.
    """
    from refold.training.run.setup import batches_to_judge

    recipe, data = course.chosen, course.data
    classes = 0 if recipe.task == "embed" else len(data.classes)
    device = "cpu" if course.cpu else _device()
    home = next(network.parameters()).device
    network.to(device)
    try:
        with torch.no_grad():
            said = outputs(network(torch.zeros(2, *course.image, device=device)))[0]
        if classes and said.shape[1] != classes:
            raise InputError(
                f"{course.place} has {classes} classes, and the network answers with "
                f"{said.shape[1]}: train it on these images first, then prune"
            )
        batches = batches_to_judge(recipe, data, course.habits.workers, device)
        return judge(network, batches, recipe.task, len(data.classes)).metrics
    finally:
        network.to(home)


def train_pruned(
    pruning: Pruning, origin: Origin, course: Course, judged: Mapping[str, float]
) -> Trained:
    """Write a pruned network into the folder of a run, and train it on with norms again.

    The folder holds all that the network is built from again, so the run resumes as any other.

    Args:
        pruning: the network, and what went.
        origin: what it comes from.
        course: how to train.
        judged: what the network achieved before it was pruned.

    Raises:
        RefusedError: when the network cannot be built again.
        InputError: and others, as `train`.
    """
    folder = course.output
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PRUNED
    export(pruning.model, file, tuple(torch.zeros(1, *size) for size in origin.sizes))
    note_origin(pruning.model, file, origin)
    write_json(folder / PRUNING, _told(pruning, origin, judged))
    return train(
        course.recipe, output=folder, data=course.place, habits=course.habits, cpu=course.cpu,
        changes={**course.changes, "model": str(file)}, tracker=course.tracker,
        reporter=course.reporter,
    )  # fmt: skip


def _told(pruning: Pruning, origin: Origin, judged: Mapping[str, float]) -> dict[str, Any]:
    stages = {
        "before": pruning.cost_before, "plain": pruning.cost_plain, "after": pruning.cost_after,
    }  # fmt: skip
    layers = [
        {"where": step.where, "before": step.before, "after": step.after} for step in pruning.steps
    ]
    return {
        "model": origin.model,
        "remove_residuals": pruning.chained,
        "layers": layers,
        **{name: asdict(cost) for name, cost in stages.items()},
        "judged_before": dict(judged),
    }


def _device() -> Any:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or "cpu"
