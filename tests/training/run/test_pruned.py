"""Pruned, trained on, deployed: one run with one summary, which resumes to the same bits.

Oracles: the pruned network itself; the last checkpoint of a run that was never stopped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from refold.errors import InputError
from refold.pruning import Pruning, pruning
from refold.sources.networks import build
from refold.sources.pruned import Narrowing, Origin
from refold.training import (
    Habits,
    Reporter,
    Trained,
    judge_before,
    network_of,
    plan_course,
    train_pruned,
)
from refold.training.stopping import Stopped
from refold.workload import workload_of
from training.pictures import folders
from training.runs import AtStep, last, same_bits, tiny

pytestmark = pytest.mark.slow

NET = """
from torch import nn

def build(num_classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(NET)
    return f"{folder / 'net.py'}:build"


def slimmed(model: str) -> Pruning:
    torch.manual_seed(0)
    net = build(model).model
    torch.nn.init.uniform_(net[1].weight, 0.1, 2)
    torch.nn.init.uniform_(net[4].weight, 0.1, 2)
    return pruning(net, IMAGE[:1], ratio=0.5, round_to=1)


def onward(
    output: Path, data: Path, model: str, reporter: Reporter | None = None, **changes: Any
) -> Trained:
    done = slimmed(model)
    course = plan_course(
        output=output, data=data, habits=Habits(log_steps=1, workers=0), cpu=True, tracker="none",
        reporter=reporter, changes={
            "epochs": 2, "batch_size": 4, "augment.size": 12, "deploy.files": ["safetensors"],
            **changes,
        },
    )  # fmt: skip
    origin = Origin(model, ((3, 12, 12),), (Narrowing(done.gone),))
    return train_pruned(done, origin, course, {"top1": 0.5})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path, model: str) -> Trained:
    return onward(tmp_path_factory.mktemp("runs") / "run", data, model)


def test_one_summary_has_every_stage(run: Trained, model: str) -> None:
    done, summary = slimmed(model), json.loads((run.folder / "summary.json").read_text())
    told = summary["pruning"]
    assert [row["where"] for row in told["layers"]] == [step.where for step in done.steps]
    assert told["model"] == model
    assert told["judged_before"] == {"top1": 0.5}
    assert summary["start"]["top1"] >= 0
    before, after = told["before"]["macs"], told["after"]["macs"]
    # An unpruned network would have as many as before, whatever it learnt.
    assert before == workload_of(build(model).model, IMAGE[:1]).macs
    assert after < before
    assert summary["deployed_form"]["macs"] == after
    assert summary["deployed_form"]["top1"] == summary["train_form"]["top1"]
    assert summary["error"]["float64"] < 1e-9


def test_it_starts_as_it_was_pruned_and_has_norms_again(run: Trained, model: str) -> None:
    started = network_of(run.folder, None)
    with torch.no_grad():
        wanted = slimmed(model).model(IMAGE)
        found = started(IMAGE)
    assert torch.allclose(found, wanted, atol=1e-5)
    norms = [part for part in started.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [
        part.out_channels for part in started.modules() if isinstance(part, torch.nn.Conv2d)
    ]
    assert all(float(norm.running_var.min()) > 0 for norm in norms)


def test_what_it_deploys_is_a_network_that_trains_on(
    run: Trained, data: Path, tmp_path: Path
) -> None:
    file = run.folder / "deploy.safetensors"
    again = build(str(file)).model
    assert run.deployed is not None
    with torch.no_grad():
        assert torch.equal(again(IMAGE), run.deployed(IMAGE))
    changes = {"model": str(file), "options": {}, "ema": None, "epochs": 1, "restore_norms": True}
    more = tiny(tmp_path / "more", data, changes=changes, checkpoint=run.folder)
    assert more.summary["start"]["top1"] == run.summary["train_form"]["top1"]
    assert more.summary["deployed_form"]["macs"] == run.summary["pruning"]["after"]["macs"]


def test_stopped_and_moved_it_goes_on_to_the_same_bits(
    run: Trained, data: Path, model: str, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        onward(tmp_path / "run", data, model, AtStep(4))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    again = tiny(tmp_path / "elsewhere", data, resume=True)
    assert same_bits(last(tmp_path / "elsewhere"), last(run.folder))
    assert again.summary["pruning"] == run.summary["pruning"]
    (tmp_path / "elsewhere" / "pruned.safetensors").unlink()
    with pytest.raises(InputError, match=r"there is no file '.*pruned\.safetensors'"):
        network_of(tmp_path / "elsewhere")


def test_the_network_is_judged_before_it_is_pruned(
    data: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"augment.size": 12, "augment.crop": "pad"}
    course = plan_course(output=tmp_path / "run", data=data, changes=changes, cpu=True)
    assert course.image == (3, 12, 12)
    net = build(model).model
    with torch.no_grad():
        net[8].bias[1] = 99.0  # whatever it sees, it says the second of two classes
    assert judge_before(net, course)["top1"] == 0.5
    with pytest.raises(InputError, match="answers with 5: train it on these images first"):
        judge_before(build(model, 5).model, course)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several processes cannot prune together"):
        plan_course(output=tmp_path / "run", data=data)
