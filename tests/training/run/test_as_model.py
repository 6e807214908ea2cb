"""The folder of a run is a MODEL: its best network, in the form that trained.

Oracle: the network that the run returned. The images are gone before anything is asked: a run is
taken to other machines without them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refold.cli.app import main
from refold.errors import InputError
from refold.exporting import described
from refold.sources.networks import build, build_to_train
from refold.training import predict
from training.pictures import folders
from training.runs import tiny

pytestmark = pytest.mark.slow

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Run:
    """A finished run, the network it returned, and the images of its validation."""

    folder: Path
    model: nn.Module
    images: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("as-model")
    data = folders(root / "data", classes=("yak", "zebra"))
    trained = tiny(root / "run", data, save_steps=1)
    (root / "data").rename(root / "away")
    assert trained.model is not None
    return Run(root / "run", trained.model.eval(), root / "away" / "val")


def answers(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)


def test_it_is_the_best_network_with_its_branches(run: Run) -> None:
    built = build(str(run.folder))
    assert torch.equal(answers(built.model), answers(run.model))
    assert built.model.state_dict().keys() == run.model.state_dict().keys()
    assert not any(module.training for module in built.model.modules())
    assert built.sizes == ((3, 12, 12),)
    assert built.about["classes"] == ["yak", "zebra"]
    last = build(str(run.folder / "checkpoints" / "last")).model
    same = torch.equal(answers(last), answers(run.model))
    summary = json.loads((run.folder / "summary.json").read_text())
    assert same == (summary["best_epoch"] == summary["epochs"])
    again = build_to_train(str(run.folder), num_classes=2, in_chans=3)
    assert torch.equal(answers(again.eval()), answers(run.model))


def test_what_is_made_of_it_answers_as_it_does(run: Run, tmp_path: Path) -> None:
    pruned = tmp_path / "small.safetensors"
    file = tmp_path / "small.pt2"
    assert main(["convert", str(run.folder), "-o", str(tmp_path / "run.pt2")]) == 0
    assert main(["verify", str(run.folder), str(tmp_path / "run.pt2")]) == 0
    options = ["--ratio", "0.2", "--round-to", "1", "-o", str(pruned)]
    assert main(["prune", str(run.folder), *options]) == 0
    assert main(["convert", str(pruned), "-o", str(file)]) == 0
    assert described(file).keys() >= {"classes", "preprocessing", "task"}
    truth = list(predict(run.folder, [run.images]))
    said = {
        path: list(predict(path, [run.images])) for path in (tmp_path / "run.pt2", pruned, file)
    }
    for path, found in said.items():
        assert [one.best(1)[0][0] for one in found] == [
            one.best(1)[0][0] for one in (truth if path.stem == "run" else said[pruned])
        ]
    smaller = [one.output for one in said[pruned]]
    assert not all(torch.allclose(a, b.output) for a, b in zip(smaller, truth, strict=True))


def test_a_run_that_has_not_finished_answers(run: Run, tmp_path: Path) -> None:
    data = folders(tmp_path / "data")
    tiny(tmp_path / "run", data, save_steps=1, changes={"epochs": 1})
    finished = [answer.output for answer in predict(tmp_path / "run", [data / "val"])]
    for name in ("summary.json", "deploy.safetensors"):
        (tmp_path / "run" / name).unlink()
    for one, other in zip(finished, predict(tmp_path / "run", [data / "val"]), strict=True):
        assert torch.allclose(one, other.output, atol=1e-5)
    data.rename(tmp_path / "away")
    with pytest.raises(InputError, match="there is no folder"):
        build(str(tmp_path / "run"))


def test_a_folder_that_is_no_model_is_one_sentence(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lies in the folder of a run: give .*run, or one of its"):
        build(str(run.folder / "checkpoints"))
    with pytest.raises(InputError, match=r"folder without a run \(config\.yaml is missing\)"):
        build(str(tmp_path))
    with pytest.raises(
        InputError, match=r"of such a file weights alone are read\. Give its run, .*run, or"
    ):
        build(str(run.folder / "deploy.safetensors"))
    with pytest.raises(InputError, match=r"--num-classes 5: .* is a trained network"):
        build(str(run.folder), num_classes=5)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="if save_pretrained wrote it, give hf:"):
        build(str(tmp_path))
    with pytest.raises(InputError, match=r"there is no file '.*net\.xml'"):
        build(str(tmp_path / "net.xml"))
    (tmp_path / "net.xml").write_text("<net/>")
    with pytest.raises(InputError, match="is an OpenVINO file"):
        build(str(tmp_path / "net.xml"))


def test_a_network_of_ones_own_is_not_in_the_folder(tmp_path: Path) -> None:
    data = folders(tmp_path / "data")
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    tiny(tmp_path / "run", data, model=net, changes={"epochs": 1, "deploy.files": ["pt2"]})
    with pytest.raises(InputError, match=r"give its deploy.pt2, or .*factory and --checkpoint"):
        build(str(tmp_path / "run"))
    assert main(["inspect", str(tmp_path / "run" / "deploy.pt2")]) == 0
