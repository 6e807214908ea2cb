"""A run that starts from weights computes, before its first step, what the weights compute."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.errors import CheckpointError, InputError
from refold.training import network_of, open_data
from refold.training.data.augment import eval_transform
from refold.training.loop.freezing import freeze, still
from refold.training.loop.learner import make_learner
from refold.training.recipes.cookbook import load_recipe
from refold.training.run.network import make_teacher, remarks, start_network
from training.pictures import folders
from training.runs import LIGHT, Told, last, records, same_bits, tiny

pytestmark = pytest.mark.slow

NET = """
import torch
from torch import nn

def build(num_classes=2):
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))
    return net

def fixed():
    return build(5)

def trained():
    net = build()
    net.load_state_dict(torch.load(FILE))
    return net
"""


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return a network with norms and biases as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.5 if name.endswith("var") else noise)
    return net


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(f"FILE = {str(folder / 'net.pth')!r}\n{NET}")
    return f"{folder / 'net.py'}:build"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, data: Path, model: str) -> Path:
    """Return a run that trained with branches."""
    run = tmp_path_factory.mktemp("runs") / "run"
    changes = {"model": model, "options": {}, "block": "acb", "ema": None}
    tiny(run, data, changes=changes)
    return run


def made(model: str, classes: int = 2) -> nn.Module:
    from refold.sources.networks import build

    return shaken(build(model, classes).model)


def started(data: Path, **changes: Any) -> Any:
    recipe = load_recipe("folder", {"augment.size": 12, **changes})
    return start_network(recipe, open_data(data))


def image() -> Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Compare two networks in evaluation mode."""
    with torch.no_grad():
        a, b = (copy.deepcopy(net).eval()(image()) for net in (one, other))
    return torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


@pytest.mark.parametrize("block", [None, "dbb", "acb", "repvgg", "mobileone"])
@pytest.mark.parametrize("way", ["factory", "checkpoint", "given"])
def test_branches_change_nothing_of_what_weights_compute(
    tmp_path: Path, data: Path, model: str, block: str | None, way: str
) -> None:
    net = made(model)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "wrapped.pth")
    torch.save(net.state_dict(), Path(model).with_name("net.pth"))
    recipe: dict[str, Any] = {"block": block, "model": model, "gamma": 0.5}
    if way == "factory":
        recipe["model"] = model.replace("build", "trained")
    if way == "checkpoint":
        recipe["checkpoint"] = str(tmp_path / "wrapped.pth")
    given = copy.deepcopy(net) if way == "given" else None
    chosen = load_recipe("folder", {"augment.size": 12, **recipe})
    start = start_network(chosen, open_data(data), given)
    assert start.brings
    assert equal(start.network, net)
    assert start.network.training
    assert any("gamma is left out" in note for note in start.notes)
    assert (type(start.network[0]) is nn.Conv2d) == (block is None)


def test_a_new_network_starts_with_branches_as_the_block_does(data: Path) -> None:
    start = started(data, model="cifar_resnet20", options={"depths": [1, 1, 1]}, block="acb")
    plain = started(data, model="cifar_resnet20", options={"depths": [1, 1, 1]})
    assert not start.brings
    assert not equal(start.network, plain.network)


@pytest.mark.parametrize("block", [None, "dbb"])
def test_a_head_of_other_classes_is_replaced_and_named(
    tmp_path: Path, data: Path, model: str, block: str | None
) -> None:
    net = made(model, 7)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    start = started(data, model=model, checkpoint=str(tmp_path / "net.pth"), block=block)
    assert start.replaced == ("6",)
    assert start.network[6].out_features == 2
    assert equal(start.network[:6], net[:6])
    recipe = load_recipe("folder", {"model": model, "checkpoint": "net.pth"})
    assert any("6" in text and "classes" in text for text in remarks(start, recipe))


@pytest.mark.parametrize("block", [None, "dbb"])
def test_a_checkpoint_without_a_head_starts_with_a_new_one(
    tmp_path: Path, data: Path, model: str, block: str | None
) -> None:
    net = made(model, 7)
    body = {f"backbone.{k}": v for k, v in net.state_dict().items() if not k.startswith("6.")}
    torch.save({"state_dict": body}, tmp_path / "net.pth")
    start = started(data, model=model, checkpoint=str(tmp_path / "net.pth"), block=block)
    assert start.replaced == ("6",)
    assert equal(start.network[:6], net[:6])
    del body["backbone.0.weight"]
    torch.save({"state_dict": body}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        started(data, model=model, checkpoint=str(tmp_path / "net.pth"), block=block)


def test_a_factory_that_takes_no_number_of_classes_gets_another_head(
    data: Path, model: str
) -> None:
    start = started(data, model=model.replace("build", "fixed"))
    assert start.replaced == ("6",)
    assert start.network(image()).shape == (3, 2)


def test_weights_of_an_expanded_network_are_taken_as_they_are(
    tmp_path: Path, data: Path, model: str
) -> None:
    net = made(model)
    wide = shaken(refold.expand(net, "dbb"), 3)
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    start = started(data, model=model, checkpoint=str(tmp_path / "wide.pth"), block="dbb")
    assert equal(start.network, wide)
    with pytest.raises(CheckpointError, match=r"wide\.pth holds dbb branches"):
        started(data, model=model, checkpoint=str(tmp_path / "wide.pth"))


@pytest.mark.parametrize("block", ["acb", "dbb", None])
@pytest.mark.parametrize("place", ["", "checkpoints/last", "best"])
def test_a_run_goes_on_from_another_in_either_form(
    earlier: Path, data: Path, model: str, block: str | None, place: str
) -> None:
    before = network_of(earlier, "last" if place.endswith("last") else "best")
    start = started(data, model=model, checkpoint=str(earlier / place), block=block)
    assert equal(start.network, before)


def test_the_weights_without_branches_fit_the_network_they_came_from(
    earlier: Path, model: str
) -> None:
    summary = json.loads((earlier / "summary.json").read_text())
    stock = summary["stock_form"]
    assert stock["top1"] == summary["train_form"]["top1"]
    net = made(model)
    report = refold.load_checkpoint(net, earlier / stock["file"])
    assert (report.folded, report.layout) == (0, "")
    assert equal(net, network_of(earlier, "best"))


def test_what_the_weights_are_worth_is_said_and_stored(
    tmp_path: Path, data: Path, model: str
) -> None:
    said: list[str] = []

    class Notes(refold.training.Reporter):
        def note(self, text: str) -> None:
            said.append(text)

    net = made(model)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    judged = []
    for block in (None, "dbb"):
        changes = {"model": model, "options": {}, "block": block, "epochs": 1}
        run = tiny(
            tmp_path / str(block), data, changes=changes, checkpoint=tmp_path / "net.pth",
            reporter=Notes(),
        )  # fmt: skip
        judged.append(run.summary["start"])
        assert json.loads((tmp_path / str(block) / "summary.json").read_text())["start"]
    assert judged[0]["top1"] == judged[1]["top1"]
    assert judged[0]["loss"] == pytest.approx(judged[1]["loss"], rel=1e-4)
    assert sum(text.startswith("before the first step: top1") for text in said) == 2
    done = tiny(tmp_path / "dbb", data, resume=True)  # which judges no second time
    assert done.summary["start"] == judged[1]
    assert len(records(tmp_path / "dbb", "start")) == 1


def test_what_is_frozen_keeps_its_bits(tmp_path: Path, data: Path, model: str) -> None:
    net = made(model)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    changes = {"model": model, "options": {}, "ema": None, "freeze": ["0", "1"]}
    tiny(tmp_path / "run", data, changes=changes, checkpoint=tmp_path / "net.pth")
    state, before = network_of(tmp_path / "run").state_dict(), net.state_dict()
    moved = {key for key in state if not torch.equal(state[key], before[key])}
    assert moved == {"3.weight", "3.bias", "6.weight", "6.bias"}


def test_a_run_that_gets_no_better_stops_and_is_done(tmp_path: Path, data: Path) -> None:
    """A rate too low to change a bit, and norms that stand still: no epoch beats the first."""
    still_ = {"epochs": 6, "patience": 2, "optimizer.lr": 1e-30, "decay.value": 0, "ema": None}
    told = Told()
    changes = {**still_, "freeze_norms": True}
    trained = tiny(tmp_path / "run", data, changes=changes, reporter=told)
    assert [record["epoch"] for record in records(tmp_path / "run", "epoch")] == [1, 2, 3]
    assert trained.summary["best_epoch"] == 1
    assert any("no epoch since the 1. was better: stopped" in note for note in told.notes)
    again, before = Told(), last(tmp_path / "run")
    tiny(tmp_path / "run", data, resume=True, reporter=again)
    assert again.notes[0].startswith("every epoch of the run in")
    assert same_bits(before, last(tmp_path / "run"))


def test_frozen_norms_are_found_wherever_they_are() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False)), nn.BatchNorm2d(2)
    )
    assert still(net) == []
    freeze(net, ["0*"])
    assert still(net) == [net[0][1]]
    assert set(still(net, every=True)) == {net[0][1], net[1]}
    with pytest.raises(InputError, match="'stem' matches no part of the network"):
        freeze(net, ["stem"])
    with pytest.raises(InputError, match="nothing is left to train"):
        freeze(net, ["*"])


class Constant(nn.Module):
    """Answers the same for every image, whatever it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([4.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] * 0 + self.bias


def test_of_equal_epochs_the_one_with_the_lower_loss_is_best(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", train=6, val=5)
    said: list[str] = []

    class Notes(refold.training.Reporter):
        def note(self, text: str) -> None:
            said.append(text)

    changes = {"epochs": 3, "ema": None, "schedule.kind": "constant", "options": {}, **LIGHT}
    run = tiny(tmp_path / "run", data, model=Constant(), changes=changes, reporter=Notes())
    epochs = records(tmp_path / "run", "epoch")
    assert len({row["val_top1"] for row in epochs}) == 1
    lowest = min(epochs, key=lambda row: row["val_loss"])
    assert run.summary["best_epoch"] == lowest["epoch"] == 3
    assert any("same answer for every image" in text for text in said)


def test_a_teacher_is_folded_and_learnt_from(tmp_path: Path, data: Path, model: str) -> None:
    teacher = made(model)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    distill = {"teacher": model, "checkpoint": str(tmp_path / "teacher.pth"), "temperature": 2.0}
    recipe = load_recipe("folder", {"model": model, "distill": {**distill, "weight": 0.25}})
    folded, notes = make_teacher(recipe, open_data(data), (3, 12, 12))
    assert notes == [f"learns from {model}, too: 0.25 of the loss"]
    assert equal(folded, teacher)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert not any(weight.requires_grad for weight in folded.parameters())
    student = made(model).eval()
    learner = make_learner(student, recipe, 2, (3, 12, 12), folded).eval()
    x, y = image() * 2, torch.tensor([0, 1, 0])
    with torch.no_grad():
        p, q = ((net(x) / 2).softmax(1) for net in (teacher.eval(), student))
        apart = (p * (p / q).log()).sum(1).mean()
        wanted = 0.75 * learner.loss(student(x), y) + 0.25 * 4 * apart
        found = learner(x, y).loss
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)
    assert learner.state_dict().keys() == {f"network.{key}" for key in student.state_dict()}


def test_a_teacher_decides_where_labels_do_not(tmp_path: Path, data: Path, model: str) -> None:
    teacher = made(model)
    teacher[6].bias.data = torch.tensor([0.0, 9.0])  # whatever it sees, it says 1
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    distill = {"teacher": model, "checkpoint": str(tmp_path / "teacher.pth"), "weight": 1.0}
    changes = {"model": model, "options": {}, "distill": distill, "epochs": 4, "ema": None}
    run = tiny(tmp_path / "run", data, changes={**changes, "optimizer.lr": 0.1})
    opened = open_data(data)
    recipe = load_recipe("folder", {"augment.size": 12, "augment.crop": "pad"})
    prepare = eval_transform(recipe.augment, opened)
    pixels = torch.stack([prepare(*opened.val.load(n))[0] for n in range(len(opened.val))])
    assert run.model is not None
    assert (run.model(pixels).argmax(1) == teacher.eval()(pixels).argmax(1)).all()


def test_a_teacher_that_seems_untrained_is_said(data: Path, model: str) -> None:
    recipe = load_recipe("folder", {"model": model, "distill": {"teacher": model}})
    _, notes = make_teacher(recipe, open_data(data), (3, 12, 12))
    assert "every norm of the teacher" in notes[1]
    assert "--teacher-checkpoint" in notes[1]


def test_a_teacher_must_know_something(data: Path, model: str) -> None:
    for distill, said in (
        ({"teacher": "resnet18"}, "is untrained: give its weights with --teacher-checkpoint"),
        ({"teacher": model.replace("build", "fixed")}, "was trained for other classes"),
    ):
        recipe = load_recipe("folder", {"model": model, "distill": distill, "augment.size": 12})
        with pytest.raises(InputError, match=said):
            make_teacher(recipe, open_data(data), (3, 12, 12))


class _Noted(nn.Linear):
    """Saves more than tensors, as layers with quantized weights do."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        del state


class _Narrow(nn.Linear):
    """Runs in float32 alone."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float32:
            raise TypeError("float32 alone")
        return super().forward(input)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (_Noted(3, 2), "1._extra_state of this network is no tensor but of type dict"),
        (
            _Narrow(3, 2),
            "cannot run in float64, where its fold is proved at the end: float32 alone",
        ),
        (nn.Identity(), "nothing to train: it has no parameters"),
        (nn.Linear(3, 2).requires_grad_(False), "nothing to train: all its parameters are frozen"),
    ],
)
def test_what_cannot_be_saved_proved_or_trained_is_said_before(
    tmp_path: Path, data: Path, head: nn.Module, what: str
) -> None:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=what):
        tiny(tmp_path / "run", data, model=nn.Sequential(pool, head))
    assert not (tmp_path / "run").exists()


def test_a_network_that_casts_its_images_trains_and_is_proved(tmp_path: Path, data: Path) -> None:
    class Casting(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.float() / 2)

    net = Casting(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                  nn.Linear(4, 2))  # fmt: skip
    done = tiny(tmp_path / "run", data, model=net, changes={"epochs": 1})
    assert done.summary["error"]["float64"] < 1e-9
    assert not any(isinstance(part, nn.BatchNorm2d) for part in done.deployed.modules())
