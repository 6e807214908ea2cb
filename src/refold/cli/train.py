"""`refold train`: images in, a plain network out, proved equal to the one that trained."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refold.cli import options
from refold.cli.console import count, note, print_json, say, table
from refold.errors import InputError

if TYPE_CHECKING:
    from refold.training import Trained

TITLES = {"top1": "top-1", "top5": "top-5", "miou": "mean IoU", "verification": "verification"}
SIGNALLED = 128  # and the signal's number, as a shell has it

Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", help="Folder with train/CLASS/IMAGE and val/CLASS/IMAGE, CIFAR, "
        "ImageNet or WebDataset shards. Default: 5,000 handwritten digits, which ship with refold.",
    ),
]  # fmt: skip
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="One of refold's recipes (--recipes lists them) or a .yaml file.",
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Folder of the run.")]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help=options.MODEL_HELP)]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="FILE", help="Weights to start from: .pt, .pth, .safetensors, the "
        "folder of a run (its best epoch), or RUN/checkpoints/last.",
    ),
]  # fmt: skip
Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", help="Start from a zoo's published weights; downloads them."),
]
NumClasses = Annotated[
    int | None,
    typer.Option("--num-classes", min=1, help="Check that the images have this many classes."),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze", metavar="PATTERN", help="Do not train what this names, such as 'layer1*'; "
        "repeatable.",
    ),
]  # fmt: skip
FreezeNorms = Annotated[
    bool, typer.Option("--freeze-norms", help="Leave every norm's statistics and scales alone.")
]
RestoreNorms = Annotated[
    bool,
    typer.Option(
        "--restore-norms", help="Give a pruned or folded network norms first, which change nothing."
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="MODEL", help="A trained network to learn from too."),
]
TeacherCheckpoint = Annotated[
    str | None,
    typer.Option("--teacher-checkpoint", metavar="FILE", help="The teacher's weights, or its run."),
]
Block = Annotated[
    str | None,
    typer.Option(
        "--block", metavar="NAME", help="Branches for its convolutions: dbb, acb, repvgg, "
        "mobileone ...; none: no blocks.",
    ),
]  # fmt: skip
Task = Annotated[
    str | None, typer.Option("--task", help="classify, embed or segment. Default: the recipe's.")
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the images.")]
Patience = Annotated[
    int | None,
    typer.Option("--patience", min=1, help="Stop after this many epochs without a better one."),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Images per step, over all processes."),
]
Rate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
RateFactors = Annotated[
    list[str] | None,
    typer.Option(
        "--lr-factor", metavar="PATTERN=FACTOR", help="Train what this names at another rate, such "
        "as 'layer1*=0.1'; repeatable.",
    ),
]  # fmt: skip
ImageSize = Annotated[int | None, typer.Option("--image-size", min=1, help="Side of the images.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in RUN; other options must match its own."),
]
DataChanged = Annotated[
    bool,
    typer.Option("--data-changed", help="With --resume: continue even though the images changed."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Set up, take one step, estimate the total time.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", min=0, help="Processes that read images; results do not depend on it."
    ),
]
SaveMinutes = Annotated[
    float,
    typer.Option("--save-minutes", min=0, help="Longest time between checkpoints, in minutes."),
]
Tracker = Annotated[
    str | None,
    typer.Option(
        "--tracker", help="tensorboard, wandb ... or none. Default: TensorBoard if installed."
    ),
]
Fsdp = Annotated[
    bool,
    typer.Option("--fsdp", help="Under torchrun: also shard the weights across processes (FSDP2)."),
]
Recompute = Annotated[
    bool,
    typer.Option(
        "--recompute",
        help="Compute the blocks' branches again in the backward pass: less memory, more time, "
        "the same numbers.",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")]
CudaGraph = Annotated[
    bool,
    typer.Option(
        "--cuda-graph", help="Launch each step as one CUDA graph: for small batches and networks."
    ),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")]
Recipes = Annotated[bool, typer.Option("--recipes", help="List the recipes and exit.")]


@dataclass(frozen=True)
class Behaviour:
    """How a run behaves; the names are those of `refold.training.Habits`."""

    workers: Workers = 2
    save_minutes: SaveMinutes = 10.0
    fsdp: Fsdp = False
    recompute: Recompute = False
    compile: Compile = False
    cuda_graph: CudaGraph = False


def train(
    *,
    data: Data = None,
    recipe: Recipe = None,
    output: Output = Path("refold-run"),
    model: Model = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    num_classes: NumClasses = None,
    freeze: Freeze = None,
    freeze_norms: FreezeNorms = False,
    restore_norms: RestoreNorms = False,
    teacher: Teacher = None,
    teacher_checkpoint: TeacherCheckpoint = None,
    block: Block = None,
    task: Task = None,
    epochs: Epochs = None,
    patience: Patience = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    lr_factor: RateFactors = None,
    image_size: ImageSize = None,
    seed: Seed = None,
    changes: options.Changes = None,
    resume: Resume = False,
    data_changed: DataChanged = False,
    dry_run: DryRun = False,
    behaviour: Behaviour,
    tracker: Tracker = None,
    cpu: Cpu = False,
    recipes: Recipes = False,
    as_json: options.Json = False,
) -> None:
    """Train a network, fold it, prove it equal, evaluate both forms, export.

    Ctrl-C, SIGTERM or a closed terminal finishes the current step and saves. The same command with
    --resume continues to the very same weights. Under torchrun the processes share each batch.
    """
    if recipes:
        _say_recipes(as_json=as_json)
        return
    if data_changed and not resume:
        raise InputError("--data-changed is for a resumed run: pass --resume as well")
    if teacher_checkpoint and not teacher and not resume:
        raise InputError("--teacher-checkpoint is the weights of a teacher: pass --teacher as well")
    given = {
        "model": model, "checkpoint": checkpoint, "pretrained": pretrained or None, "seed": seed,
        "freeze": freeze or None, "freeze_norms": freeze_norms or None, "block": block,
        "restore_norms": restore_norms or None,
        "distill.teacher": teacher, "distill.checkpoint": teacher_checkpoint, "task": task,
        "epochs": epochs, "patience": patience, "batch_size": batch_size, "optimizer.lr": lr,
        "optimizer.factors": _factors(lr_factor), "augment.size": image_size,
    }  # fmt: skip
    from refold import training
    from refold.cli.progress import make_reporter

    with stoppable(output):
        trained = training.train(
            recipe if resume else _recipe_of(recipe, given), output=output, data=data,
            changes=_all_changes(given, changes or []), resume=resume, data_changed=data_changed,
            dry_run=dry_run, cpu=cpu, tracker=tracker, num_classes=num_classes,
            habits=training.Habits(**vars(behaviour)), reporter=make_reporter(),
        )  # fmt: skip
    if _is_main():
        _report(trained, as_json=as_json, dry_run=dry_run)


@contextmanager
def stoppable(output: Path) -> Generator[None]:
    """Exit as a signal asks for once the run has saved, and leave the other processes in order."""
    from refold.training import Stopped

    try:
        yield
    except Stopped as stopped:
        note(f"stopped and saved; continue with: refold train -o {output} --resume")
        raise typer.Exit(SIGNALLED + stopped.number) from None
    finally:
        _leave_group()


def _factors(texts: list[str] | None) -> dict[str, float] | None:
    """Return the factors of `--lr-factor`, by pattern.

    >>> _factors(["layer1*=0.1", "fc=10"])
    {'layer1*': 0.1, 'fc': 10.0}
    """
    found: dict[str, float] = {}
    for text in texts or ():
        pattern, _, factor = text.rpartition("=")
        try:
            found[pattern] = float(factor)
        except ValueError:
            pattern = ""
        if not pattern:
            raise InputError(
                f"--lr-factor {text!r} is not PATTERN=FACTOR, such as 'layer1*=0.1'"
            ) from None
    return found or None


def _report(trained: Trained, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(trained.summary)
    elif dry_run:
        _say_dry_run(trained.summary)
    else:
        say_summary(trained)


def _recipe_of(recipe: str | None, given: dict[str, Any]) -> str | None:
    """Return the recipe's name; embed and segment have their own."""
    if recipe is None and given.get("task") in ("embed", "segment"):
        return f"folder_{given['task']}"
    return recipe


def _all_changes(given: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    from refold.training.recipes.cookbook import parse_change

    chosen = {key: value for key, value in given.items() if value is not None}
    return {**chosen, **dict(map(parse_change, changes))}


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _say_recipes(*, as_json: bool) -> None:
    from refold.training import list_recipes, load_recipe

    found = [load_recipe(name) for name in list_recipes()]
    if as_json:
        print_json([recipe.model_dump(mode="json") for recipe in found])
        return
    for recipe in found:
        say(f"{recipe.name}: {recipe.model}, {recipe.epochs} epochs; {recipe.data}")
        say(f"    aims at {recipe.aims}")
        say(f"    {recipe.source}")


def _say_dry_run(plan: dict[str, Any]) -> None:
    from refold.cli.progress import duration

    steps = plan["epochs"] * plan["steps"]
    whole = duration(max(1, steps * plan["seconds_per_step"]))
    many = "step" if steps == 1 else "steps"
    say(f"{steps} {many}, {plan['seconds_per_step']:.2f} s for the first: about {whole} in all")
    note("dry run: nothing was written")


def say_summary(trained: Trained) -> None:
    """Print what a run led to."""
    summary = trained.summary
    before, after = summary["train_form"], summary["deployed_form"]
    rows = [
        [title, count(before[name]), count(after[name])]
        for name, title in (("parameters", "parameters"), ("macs", "multiply-adds"))
    ]
    rows += [
        [title, f"{before[name]:.2%}", f"{after[name]:.2%}"]
        for name, title in TITLES.items()
        if name in before
    ]
    title = f"{summary['model']}, epoch {summary['best_epoch']} of {summary['epochs']}"
    table(title, ["", "train form", "deployed form"], rows)
    say(f"same answers: {summary['same_answers']} of {summary['answers']}")
    error = summary["error"]
    say(
        f"equal: largest error {error['float64']:.1e} in float64; {error['as_written']:.1e} with "
        "the weights as written"
    )
    for part, names in summary["unreadable"].items():
        if names:
            images = f"{len(names)} image{'s' * (len(names) > 1)}"
            say(f"{images} of {part} could not be read: {', '.join(names)}")
    say(f"the run is in {trained.folder}: {', '.join([*summary['files'], 'summary.json'])}")
    if "pruning" in summary:
        _say_stages(summary)


def _say_stages(summary: dict[str, Any]) -> None:
    """Print what each stage of a run achieves that began with pruning."""
    pruning, start = summary["pruning"], summary["start"]
    stages: list[tuple[str, dict[str, Any]]] = [
        ("before pruning", {**pruning["before"], **pruning["judged_before"]}),
        ("pruned", {**pruning["after"], **start}),
        ("trained on", summary["train_form"]),
        ("deployed", summary["deployed_form"]),
    ]
    metric = next(name for name in TITLES if name in start)
    rows = [
        [stage, count(found["parameters"]), count(found["macs"]), f"{found[metric]:.2%}"]
        for stage, found in stages
    ]
    title = f"{pruning['model']}, pruned and trained on"
    table(title, ["", "parameters", "multiply-adds", TITLES[metric]], rows)
