"""The end of a run: fold the best network, prove it, evaluate both forms, and write them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from refold.branches import collapse
from refold.checkpoint import write_state_dict
from refold.equivalence import prove
from refold.errors import MissingDependencyError, RefusedError
from refold.exporting import Options, without_folders, write
from refold.folding import reparameterize
from refold.pruning import join_norms
from refold.residuals import remove_residuals
from refold.sources.networks import note_origin
from refold.sources.pruned import is_pruned, origin_of
from refold.training.data.datasets import Data
from refold.training.loop.collectives import total, union
from refold.training.loop.engine import Engine
from refold.training.loop.evaluation import Judged
from refold.training.loop.run_folder import PRUNED
from refold.training.run.about import about_of
from refold.workload import workload_of

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Recipe

STOCK = "stock.safetensors"
_ENOUGH = 8  # answers, for all of them to be the same by more than chance

Fold = Callable[[nn.Module, Any], nn.Module]


@dataclass(frozen=True)
class Finished:
    """The results of a run.

    Args:
        summary: what `summary.json` holds.
        network: the form that trained, with the weights of the best epoch.
        deployed: the form that folding it led to.
    """

    summary: dict[str, Any]
    network: nn.Module
    deployed: nn.Module


def finish(engine: Engine, data: Data, image: tuple[int, ...]) -> Finished:
    """Fold the best network of a run, prove it equal, evaluate both forms, and write them.

    Args:
        engine: its training is over.
        data: the images.
        image: shape of one, as the network sees it.

    Raises:
        NotEquivalentError: when the fold is not exact.
        ExportError: when it cannot be exported.
    """
    accelerator, folder = engine.accelerator, engine.folder
    network = engine.best_network()
    like = next(network.parameters())
    example = torch.randn(1, *image, generator=torch.Generator().manual_seed(0)).to(like)
    fold = folding(engine.recipe)
    deployed = fold(network, example)
    judged = engine.judge(network), engine.judge(deployed)
    same, compared = _agreement(engine, *judged)
    _warn_of_chance(engine, judged[1])
    broken = _unreadable(engine, data, judged[0])
    about = about_of(engine.recipe, data)
    summary: dict[str, Any] = {
        "recipe": engine.recipe.name,
        "model": engine.recipe.model,
        "block": engine.recipe.block,
        "task": engine.recipe.task,
        "epochs": engine.parts.position.epoch,
        "best_epoch": engine.parts.position.best_epoch,
        **({"pruning": told} if (told := _pruning(engine)) else {}),
        **({"start": started} if (started := folder.start()) else {}),
        "train_form": _form(engine, network, example, judged[0]),
        "deployed_form": _form(engine, deployed, example, judged[1]),
        **_stock(engine, network, example),
        **about,
        "same_answers": same,
        "answers": compared,
        "unreadable": broken,
    }
    if accelerator.is_main_process:
        summary["error"] = _proved(network, deployed, example, fold)
        summary["files"] = _exported(engine, deployed, example, about, summary["error"]["float64"])
        folder.summarise(summary)
    accelerator.wait_for_everyone()
    return Finished(summary, network, deployed)


def _pruning(engine: Engine) -> dict[str, Any] | None:
    """Return what went before the run, where it began with pruning."""
    own = Path(engine.recipe.model) == (engine.folder.path / PRUNED).absolute()
    return engine.folder.pruning() if own else None


def _stock(engine: Engine, network: nn.Module, example: Tensor) -> dict[str, Any]:
    """Write the weights of the network without its branches, and judge them.

    They load strictly into the network that the branches were added to.
    """
    if engine.recipe.block is None:
        return {}
    try:
        plain = collapse(network)
    except RefusedError as error:
        engine.reporter.note(f"{STOCK} is left out: {error}")
        return {}
    judged = engine.judge(plain)
    if engine.folder.writes:
        write_state_dict(plain.state_dict(), engine.folder.path / STOCK)
    return {"stock_form": {**_form(engine, plain, example, judged), "file": STOCK}}


def _warn_of_chance(engine: Engine, judged: Judged) -> None:
    """Say so where a network has learnt nothing."""
    share, answers = judged.metrics.get("top1"), judged.answers
    if share is None or answers is None or len(answers) < _ENOUGH:
        return
    text = f"the deployed network is right in {share:.2%} of the validation images"
    if bool((answers == answers[0]).all()):
        engine.reporter.note(f"{text} and gives the same answer for every image: it learnt nothing")
    elif share <= 1 / engine.classes:
        engine.reporter.note(f"{text}, no more than chance among {engine.classes} classes")


def folding(recipe: Recipe) -> Fold:
    """Return what makes the plain form of a trained network, as the recipe wants it."""
    wanted = recipe.deploy

    def fold(network: nn.Module, example: Any) -> nn.Module:
        if wanted.remove_residuals:
            network = remove_residuals(network, example, strict=True)
        plain = reparameterize(network, example, allow_growth=wanted.allow_growth)
        return join_norms(plain) if recipe.restore_norms else plain

    return fold


def _proved(
    network: nn.Module, deployed: nn.Module, example: Tensor, fold: Fold
) -> dict[str, float]:
    """Return the largest errors of a fold done in float64, and of the weights as written."""
    network, deployed = copy.deepcopy(network).cpu(), copy.deepcopy(deployed).cpu()
    proof = prove(network, deployed, (example.cpu(),), fold)
    return {"float64": proof.exact.max_rel_error, "as_written": proof.shipped.max_rel_error}


def _exported(
    engine: Engine, deployed: nn.Module, example: Tensor, about: dict[str, Any], loss: float
) -> list[str]:
    plain, files = copy.deepcopy(deployed).cpu(), list[str]()
    source = without_folders(engine.recipe.model)
    origin = {"source": source, "error": f"{loss:.1e} in float64"}
    for suffix in engine.recipe.deploy.files:
        name = f"deploy.{suffix}"
        try:
            file = engine.folder.path / name
            said = {"model": source, "task": engine.recipe.task, **about}
            done = write(plain, file, example.cpu(), Options(), origin, said)
            for remark in done.notes:
                engine.reporter.note(remark)
            files.append(name)
            if suffix == "safetensors" and is_pruned(engine.recipe.model):
                note_origin(plain, file, origin_of(Path(engine.recipe.model)))
        except MissingDependencyError as error:
            engine.reporter.note(f"{name} is left out: {error}")
        except RefusedError as error:
            engine.reporter.note(str(error))
    return files


def _form(engine: Engine, network: nn.Module, example: Tensor, judged: Judged) -> dict[str, Any]:
    work = workload_of(network, example)
    return {
        "parameters": work.parameters,
        "macs": work.macs,
        "images": int(total(engine.accelerator, torch.tensor(judged.images))),
        **judged.metrics,
    }


def _agreement(engine: Engine, one: Judged, other: Judged) -> tuple[int, int]:
    """Return how many answers of both forms are the same, and how many there are."""
    if one.answers is None or other.answers is None:
        counts = torch.zeros(2)
    else:
        same = (one.answers == other.answers).sum()
        counts = torch.tensor([float(same), float(one.answers.numel())])
    if engine.recipe.task != "embed":  # there every process has answered for all pairs
        counts = total(engine.accelerator, counts.double())
    return int(counts[0]), int(counts[1])


def _unreadable(engine: Engine, data: Data, judged: Judged) -> dict[str, list[str]]:
    """Return the names of the images that could not be read, by any process."""
    train = union(engine.accelerator, engine.parts.position.unreadable)
    val = union(engine.accelerator, judged.unreadable)
    return {"train": list(map(data.train.name, train)), "val": list(map(data.val.name, val))}
