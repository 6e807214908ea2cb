"""`refold prune --then-train`: the pruned network trains on, and one run holds the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refold.cli import options
from refold.cli.console import note, print_json, step
from refold.cli.subject import Subject
from refold.cli.train import (
    Cpu,
    Data,
    Epochs,
    Rate,
    Recipe,
    Tracker,
    Workers,
    say_summary,
    stoppable,
)
from refold.errors import InputError
from refold.sources.networks import brings_weights

if TYPE_CHECKING:
    from refold.pruning import Pruning
    from refold.sources.pruned import Origin
    from refold.training import Course

RUN = Path("refold-run")

ThenTrain = Annotated[
    bool,
    typer.Option(
        "--then-train",
        help="Train the pruned network on --data and deploy it; -o is then the folder of the run.",
    ),
]


@dataclass(frozen=True)
class Further:
    """What comes after pruning: how the network trains on."""

    then_train: ThenTrain = False
    data: Data = None
    recipe: Recipe = None
    epochs: Epochs = None
    lr: Rate = None
    changes: options.Changes = None
    workers: Workers = 2
    tracker: Tracker = None
    cpu: Cpu = False


def plan_training(
    further: Further, network: options.Network, output: Path | None
) -> tuple[Course, options.Network] | None:
    """Return how the pruned network trains on, and the network at the size of the images.

    Raises:
        InputError: when it cannot, or options are given that only training has a use for.
    """
    if not further.then_train:
        if replace(further, cpu=False) != Further():
            raise InputError(
                "--data, --recipe, --epochs, --lr, --set, --workers and --tracker are for further "
                "training: pass --then-train"
            )
        return None
    if network.checkpoint is None and not brings_weights(network.model):
        raise InputError(
            f"{network.model} is untrained, so there is nothing to prune: give its weights with "
            "--checkpoint"
        )
    from refold.cli.progress import make_reporter
    from refold.training import Habits, plan_course
    from refold.training.recipes.cookbook import parse_change

    given = {"epochs": further.epochs, "optimizer.lr": further.lr}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    changes |= dict(map(parse_change, further.changes or []))
    course = plan_course(
        output=output or RUN, data=further.data, recipe=further.recipe,
        weights=(network.checkpoint and str(network.checkpoint), network.model), changes=changes,
        habits=Habits(workers=further.workers), cpu=further.cpu, tracker=further.tracker,
        reporter=make_reporter(),
    )  # fmt: skip
    if network.input_size:
        raise InputError(
            "--input-size: the recipe says the size of the images, give --set augment.size=N"
        )
    size = "x".join(map(str, course.image))
    return course, replace(network, input_size=[size], batch=1)


def judge_unpruned(subject: Subject, course: Course) -> dict[str, float]:
    """Return what the network achieves before anything is pruned."""
    from refold.training import judge_before

    with step("judge the network before it is pruned"):
        return judge_before(subject.model, course)


def train_on(
    done: Pruning, origin: Origin, course: Course, judged: dict[str, float], *, as_json: bool
) -> None:
    """Train the pruned network, and print what every stage achieves."""
    from refold.training import train_pruned

    with stoppable(course.output):
        trained = train_pruned(done, origin, course, judged)
    if as_json:
        print_json(trained.summary)
        return
    say_summary(trained)
    model = trained.folder / "deploy.safetensors"
    note(f"to train it further: refold train --model {model} --restore-norms")
