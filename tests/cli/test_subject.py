"""What is fed to a network, and what a network must be before work goes into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from refold.cli.live_statistics import enliven, initial_norms
from refold.cli.options import Network
from refold.cli.subject import check_finite, check_runs, parse_size, prepare, stated_size
from refold.errors import InputError
from refold.graph.layers import ChannelClamp
from refold.workload import workload_of

Net = Callable[[str], str]


@pytest.mark.parametrize("text", ["3x8x8", "3×8×8", "3,8,8", " 3x8x8 "])
def test_a_size_is_read(text: str) -> None:
    assert parse_size(text) == (3, 8, 8)


@pytest.mark.parametrize("text", ["", "3x", "axb", "3x8x-8", "3x0x8", "3 8 8"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--input-size"):
        parse_size(text)


def test_a_network_states_its_size() -> None:
    model = nn.Identity()
    assert stated_size(model) == (3, 224, 224)
    model.pretrained_cfg = {"input_size": (3, 96, 96)}  # type: ignore[assignment]
    assert stated_size(model) == (3, 96, 96)


def test_batch_size_and_dtype_are_as_asked(net: Net) -> None:
    subject = prepare(Network(net("branchy"), input_size=["3x8x9"], batch=2))
    assert subject.example_inputs[0].shape == (2, 3, 8, 9)
    assert subject.example_inputs[0].dtype == torch.float32


def test_the_seed_decides_weights_and_inputs(net: Net) -> None:
    def make(seed: int) -> torch.Tensor:
        subject = prepare(Network(net("branchy"), input_size=["3x8x8"], seed=seed))
        return subject.model(*subject.example_inputs)

    assert torch.equal(make(1), make(1))
    assert not torch.equal(make(1), make(2))


def test_a_wrong_size_is_explained(net: Net) -> None:
    with pytest.raises(InputError, match=r"does not run on an input of 4x8x8.*--input-size"):
        prepare(Network(net("branchy"), input_size=["4x8x8"]))


def test_weights_that_are_no_numbers_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    check_finite(model, "net")
    model[0].bias.data[0] = float("inf")
    with pytest.raises(InputError, match=r"net: weight '0\.bias' holds NaN or infinity"):
        check_finite(model, "net")
    with pytest.raises(InputError, match=r"net: '0\.weight' is on the meta device"):
        check_finite(nn.Sequential(nn.Conv2d(1, 1, 1, device="meta")), "net")


def test_statistics_come_alive_and_activations_stay_sane() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(12)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(2, 8, 40, 40)
    assert enliven(model, (x,), seed=0) == 12
    assert not initial_norms(model)
    assert not any(module.training for module in model.modules())
    norm = model[5][1]
    assert norm.momentum == nn.BatchNorm2d(1).momentum
    weights = torch.cat([layer[1].weight for layer in model])
    assert bool((weights > 0).any())
    assert bool((weights < 0).any())
    assert 0.05 < float(model(x).std().detach()) < 20


def test_trained_norms_are_left_alone() -> None:
    norm = nn.BatchNorm2d(2).eval()
    assert norm.running_mean is not None
    norm.running_mean += 1
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    assert enliven(norm, (torch.randn(2, 2, 4, 4),), seed=0) == 0
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


@pytest.mark.parametrize(("asked", "initial"), [(None, 4), (False, 4), (True, 0)])
def test_a_file_of_the_users_is_enlivened_only_when_asked(
    net: Net, asked: bool | None, initial: int
) -> None:
    subject = prepare(Network(net("branchy"), input_size=["3x8x8"], live_statistics=asked))
    assert len(initial_norms(subject.model)) == initial


def test_an_untrained_zoo_network_is_enlivened(capsys: pytest.CaptureFixture[str]) -> None:
    subject = prepare(Network("timm:resnet10t", input_size=["3x32x32"]))
    assert not initial_norms(subject.model)
    assert "random statistics" in capsys.readouterr().err


def test_an_assumed_size_is_said(net: Net, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(Network(net("branchy")))
    assert "assuming an input of 3x224x224" in capsys.readouterr().err
    prepare(Network(net("branchy"), input_size=["3x8x8"]))
    prepare(Network("timm:test_resnet"))  # which states its own
    assert "assumed" not in capsys.readouterr().err


def test_a_network_is_built_for_a_number_of_classes(net: Net) -> None:
    ours = prepare(Network("cifar_resnet20", input_size=["3x16x16"], num_classes=7))
    zoo = prepare(Network("timm:test_resnet", num_classes=7))
    for subject in (ours, zoo):
        assert subject.model(*subject.example_inputs).shape == (1, 7)
    with pytest.raises(InputError, match="takes no such argument: leave --num-classes out"):
        prepare(Network(net("branchy"), num_classes=7))


@pytest.mark.parametrize("free", [True, False])
def test_the_work_of_an_exported_program_is_that_of_the_batch_asked_for(
    tmp_path: Path, free: bool
) -> None:
    """One exported with two examples, as a batch of any size has to be, is not counted twice."""
    shapes = ({0: torch.export.Dim.DYNAMIC},) if free else None
    net, x = nn.Conv2d(3, 4, 3).eval(), torch.zeros(2, 3, 8, 9)
    program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    counts = []
    for batch in (1, 3):
        subject = prepare(Network(str(tmp_path / "net.pt2"), batch=batch))
        assert subject.example_inputs[0].shape == ((batch if free else 2), 3, 8, 9)
        counts.append(workload_of(subject.model, subject.example_inputs).macs)
    alone = workload_of(net, x[:1]).macs
    assert alone is not None
    assert counts == ([alone, 3 * alone] if free else [2 * alone, 2 * alone])


def test_only_a_range_may_have_no_end() -> None:
    clamp = ChannelClamp(torch.tensor([-torch.inf, 0.0]), torch.tensor([torch.inf, 6.0]), 2)
    check_finite(clamp, "net")
    clamp.high[0] = torch.nan
    with pytest.raises(InputError, match="'high' holds NaN"):
        check_finite(clamp, "net")
    norm = nn.BatchNorm2d(2)
    norm.running_var[0] = torch.inf
    with pytest.raises(InputError, match="'running_var' holds NaN or infinity"):
        check_finite(norm, "net")


def test_a_network_of_several_inputs_is_told_the_way() -> None:
    class Pair(nn.Module):
        def forward(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return image + other

    with pytest.raises(InputError, match=r"'other'; the command line gives it one tensor"):
        check_runs(Pair(), (torch.zeros(1, 3, 4, 4),), "net.py:pair")
