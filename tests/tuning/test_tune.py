"""Tuning with a measure of our own: what is adopted, what never is, and what a file replays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import conv, live, net, norms
from refold.cli.app import main
from refold.errors import InputError, RefusedError
from refold.tuning import Choices, Speed, Trial, Tuning, load_tuning, save_tuning, tune, tuned

pytestmark = pytest.mark.slow

FASTER, SLOWER, SAME = Speed(1.1, 1.2, 1.3), Speed(0.7, 0.8, 0.9), Speed(0.95, 1.0, 1.05)
IMAGE = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)).double()


def block() -> nn.Module:
    """Two parallel convolutions with norms, and a residual after a ReLU."""
    return net(
        lambda self, x: x + self.c(torch.relu(self.n(self.a(x)) + self.m(self.b(x)))),
        a=conv(4, 4),
        b=conv(4, 4, 1),
        n=nn.BatchNorm2d(4),
        m=nn.BatchNorm2d(4),
        c=conv(4, 4),
    )


def model() -> nn.Module:
    torch.manual_seed(0)
    return live(nn.Sequential(block(), block()))


def layers(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


def branchy(module: nn.Module) -> float:
    """Score a network as a machine does that runs many layers fast, but not unfolded ones."""
    return layers(module) + 10 * (norms(module) == 0)


def scores(score: Callable[[nn.Module], float]) -> Callable[[nn.Module, nn.Module], Speed]:
    """Return a measure without noise: a network is as fast as its score is high."""

    def measure(first: nn.Module, second: nn.Module) -> Speed:
        ratio = score(second) / score(first)
        return Speed(0.99 * ratio, ratio, 1.01 * ratio)

    return measure


def same(first: nn.Module, second: nn.Module) -> bool:
    expected, found = first(IMAGE), second(IMAGE)
    return bool((expected - found).abs().max() <= 1e-9 * expected.abs().max())


def is_last(module: nn.Module) -> bool:
    weights = [p for p in module.parameters() if p.ndim == 4 and p.shape[2] > 1]
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_without_a_difference_the_plain_fold_stays() -> None:
    found = tune(model(), IMAGE, measure=lambda first, second: SAME)
    assert found.choices == Choices()
    assert found.speed == SAME
    assert [trial.adopted for trial in found.trials] == [True, False, False, False]
    assert layers(found.model) == 4


def test_what_is_slower_than_the_unfolded_network_is_never_returned() -> None:
    found = tune(model(), IMAGE, measure=lambda first, second: SLOWER)
    assert found.choices == Choices(folded=False)
    assert found.speed == Speed(1, 1, 1)
    assert layers(found.model) == 6
    assert norms(found.model) == 4


def test_choices_that_won_by_chance_give_way_to_the_plain_fold() -> None:
    answers = iter([FASTER, FASTER, FASTER, SLOWER])
    found = tune(model(), IMAGE, measure=lambda first, second: next(answers))
    assert found.choices == Choices()
    assert found.speed == FASTER  # that of the fold, measured first
    assert not found.trials[-1].adopted
    assert norms(found.model) == 0


def test_a_form_that_loses_in_the_end_is_not_returned_either() -> None:
    answers = iter([FASTER, FASTER, FASTER, FASTER, SLOWER])
    found = tune(model(), IMAGE, measure=lambda first, second: next(answers))
    assert found.choices == Choices(folded=False)
    assert found.trials[-1].name == "all of it"
    assert norms(found.model) == 4


def test_branches_stay_apart_where_that_is_faster() -> None:
    found = tune(model(), IMAGE, measure=scores(branchy))
    assert set(found.choices.apart) == {"0", "1"}  # equal blocks, one choice
    assert layers(found.model) == 6
    assert norms(found.model) == 0
    assert same(model(), found.model)


def test_one_part_stays_apart_and_the_other_is_merged() -> None:
    made = tuned(model(), IMAGE, Choices(apart=("1",)))
    assert [layers(part) for part in made.model] == [2, 3]
    assert norms(made.model) == 0
    assert same(model(), made.model)
    assert any("stay apart" in item.reason for item in made.kept)


def test_a_merge_may_grow_in_one_part() -> None:
    necks = [nn.Sequential(conv(4, 1, 1), conv(1, 4, 1)) for _ in range(2)]
    chain = live(nn.Sequential(necks[0], nn.ReLU(), necks[1], nn.ReLU()))
    found = tune(chain, IMAGE, measure=scores(lambda module: 1 / layers(module)))
    assert layers(refold.reparameterize(chain, IMAGE)) == 4
    assert layers(found.model) == 2
    assert found.choices.grown
    one = tuned(chain, IMAGE, Choices(grown=("0",)))
    assert layers(one.model) == 3
    assert same(chain, one.model)


def test_residuals_go_where_that_is_faster() -> None:
    wide = scores(lambda module: max(p.shape[0] for p in module.parameters()))
    found = tune(model(), IMAGE, measure=wide)
    assert found.choices.without_residuals
    assert same(model(), found.model)


def test_channels_last_is_tried_in_eager_mode_alone() -> None:
    measure = scores(lambda module: 2.0 if is_last(module) else 1.0)
    found = tune(model(), IMAGE, measure=measure)
    assert found.choices.channels_last
    assert is_last(found.model)
    assert same(model(), found.model)
    found = tune(model(), IMAGE, measure=measure, runtime="onnxruntime")
    assert not found.choices.channels_last


def test_trials_are_limited_and_told() -> None:
    told: list[str] = []
    found = tune(model(), IMAGE, trials=0, measure=lambda a, b: SAME, progress=told.append)
    assert told == ["fold", "without residuals", "channels last"]
    assert [trial.name for trial in found.trials] == told


def test_a_form_that_cannot_run_is_a_trial_with_a_reason() -> None:
    found = tune(model(), IMAGE, measure=lambda first, second: "no such operator")
    assert not found.choices.folded
    assert found.trials[0] == Trial("fold", None, False, "no such operator")
    assert "no such operator" in str(found)


def test_the_clock_is_the_measure_by_default() -> None:
    found = tune(live(nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))), IMAGE, rounds=2, trials=0)
    assert found.trials[0].name == "fold"
    assert found.runtime == "eager"


def test_the_callers_model_stays_as_it_is() -> None:
    network = model()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tune(network, IMAGE, measure=scores(branchy))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("options", [{"runtime": "abacus"}, {"rounds": 0}, {"trials": -1}])
def test_options_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match="tune got"):
        tune(model(), IMAGE, **options)


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(RefusedError, match="training mode"):
        tune(model().train(), IMAGE)


# the file


def saved(path: Path) -> Tuning:
    found = tune(model(), IMAGE, measure=scores(branchy))
    save_tuning(found, path)
    return found


def test_a_file_holds_all_that_was_found(tmp_path: Path) -> None:
    found, read = saved(tmp_path / "t.json"), load_tuning(tmp_path / "t.json", model())
    assert read.to_dict() == found.to_dict()
    assert str(read) == str(found)
    assert read.model is None
    assert layers(tuned(model(), IMAGE, read.choices).model) == 6


def test_a_file_for_another_network_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "t.json")
    with pytest.raises(InputError, match="for a network with other weights"):
        load_tuning(tmp_path / "t.json", nn.Linear(2, 2))


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "extra": 0}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a tuning file"):
        load_tuning(path)
    with pytest.raises(InputError, match="there is no file"):
        load_tuning(tmp_path / "none.json")


# the commands


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "nets.py"
    path.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)\n"
        "        self.n = nn.BatchNorm2d(4)\n"
        "    def forward(self, x):\n"
        "        return self.n(self.a(x)) + self.b(x)\n"
        "def build():\n"
        "    return Net()\n"
    )
    return f"{path}:build"


def test_the_command_writes_a_file_and_convert_follows_it(
    factory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compare = scores(branchy)
    monkeypatch.setattr("refold.tuning.search.by_clock", lambda *args: compare)
    file, size = str(tmp_path / "t.json"), ["--input-size", "3x8x8"]
    assert main(["tune", factory, *size, "-o", file]) == 0
    assert "branches apart" in capsys.readouterr().out
    assert json.loads(Path(file).read_text())["choices"]["apart"]
    out = str(tmp_path / "n.safetensors")
    assert main(["convert", factory, *size, "-o", out, "--tuning", file]) == 0
    assert "equal: largest error" in capsys.readouterr().out
    from safetensors import safe_open

    with safe_open(out, "pt") as weights:
        keys = list(weights.keys())
    assert {key.partition(".")[0] for key in keys} == {"a", "b"}
    assert main(["convert", factory, *size, "-o", out, "--tuning", file, "--allow-growth"]) == 2
    assert "--tuning already decides which merges" in capsys.readouterr().err
    assert main(["tune", factory, *size, "-o", str(tmp_path / "t.txt")]) == 2


def test_the_command_prints_json(
    factory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("refold.tuning.search.by_clock", lambda *args: lambda a, b: SAME)
    assert main(["tune", factory, "--input-size", "3x8x8", "--trials", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["choices"]["folded"] is True


def test_tensors_of_the_example_are_what_the_file_names() -> None:
    found = tune(model(), (IMAGE,), measure=lambda a, b: SAME, trials=0)
    assert found.shapes == (tuple(Tensor.size(IMAGE)),)
