"""RepMLPNet's published weights, in either form of theirs, into either form of ours.

Oracle: the output of a network written as the authors' is, with its own weights, before any fold.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.layout_nets import NETS, error, live
from helpers.released_repmlp import Net, Perceptron
from refold.blocks import RepMLPBlock
from refold.checkpoint import deploy_state_dict, load_checkpoint
from refold.cli.app import main
from refold.errors import CheckpointError

pytestmark = pytest.mark.slow

EXACT = 1e-9
OPTIONS: dict[str, Any] = {
    "num_classes": 5, "img_size": 32, "widths": (8, 16), "depths": (2, 1), "sets": (2, 4),
    "kernels": (1, 3),
}  # fmt: skip


def ours(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    return refold.create_model("repmlpnet_t224", partitions=(8, 4, 2, 1), **OPTIONS, **options)


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(image())


FORMS: dict[str, Callable[[], nn.Module]] = {
    "train": lambda: live(ours, seed=7),
    "deploy": lambda: live(lambda: ours(deploy=True), seed=7),
    "engine": lambda: refold.reparameterize(live(ours, seed=7), image()),
}


@pytest.mark.parametrize("form", FORMS)
def test_repmlpnets_training_form_loads(tmp_path: Path, form: str) -> None:
    saved, model = live(Net), FORMS[form]()
    torch.save({"model": saved.state_dict(), "epoch": 1}, tmp_path / "a.pth")
    report = load_checkpoint(model, tmp_path / "a.pth")
    assert report.layout == "RepMLPNet"
    # three FC3, six layers of the units' own pairs, two embeddings, the head
    assert report.folded == (0 if form == "train" else 12)
    assert error(answer(saved), answer(model)) <= EXACT


@pytest.mark.parametrize("form", FORMS)
def test_repmlpnets_own_deploy_form_loads(tmp_path: Path, form: str) -> None:
    """It keeps every norm but FC3's, so the others are folded on the way into ours."""
    saved, model = live(Net), FORMS[form]()
    before = answer(model)
    injected = deploy_state_dict(saved.state_dict())
    torch.save(injected, tmp_path / "a.pth")
    if form == "train":
        with pytest.raises(CheckpointError, match=r"deploy form of RepMLPNet .*fc3\.weight"):
            load_checkpoint(model, tmp_path / "a.pth")
        assert torch.equal(answer(model), before)
        return
    report = load_checkpoint(model, tmp_path / "a.pth")
    assert (report.layout, report.folded) == ("RepMLPNet", 9)
    assert error(answer(saved), answer(model)) <= EXACT


def test_a_norm_that_the_model_kept_stays(tmp_path: Path) -> None:
    """Timm's walker deploys blocks and pairs, not the norms between them."""
    saved, model = live(Net), live(ours, seed=7)
    for part in model.modules():
        if hasattr(part, "switch_to_deploy"):
            cast(Any, part).switch_to_deploy()
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    assert load_checkpoint(model, tmp_path / "a.pth").folded == 11
    assert error(answer(saved), answer(model)) <= EXACT


def test_without_a_classifier_the_last_norm_stays(tmp_path: Path) -> None:
    options = {**OPTIONS, "num_classes": 0, "partitions": (8, 4, 2, 1)}
    saved, model = (
        live(lambda form=form: refold.create_model("repmlpnet_t224", **options, deploy=form), form)
        for form in (False, True)
    )
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    assert load_checkpoint(model, tmp_path / "a.pth").folded == 11
    assert error(answer(saved), answer(model)) <= EXACT


def test_repmlpnets_keys_are_the_published_ones() -> None:
    """Read off the authors' repmlpnet.py: all of a unit's, in both forms."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def unit(*parts: str) -> set[str]:
        pairs = ("ffn_block.ffn_fc1", "ffn_block.ffn_fc2")
        keys = {f"{name}.{role}" for name in ("prebn1", "prebn2") for role in norm}
        keys |= {f"{pair}.bn.{role}" for pair in pairs for role in norm}
        keys |= {f"{pair}.conv.weight" for pair in pairs} | set(parts)
        layers = ("gp.fc1", "gp.fc2")
        keys |= {f"repmlp_block.{name}.{role}" for name in layers for role in ("weight", "bias")}
        return {f"stages.1.0.{key}" for key in keys}

    def found(state: dict[str, Tensor]) -> set[str]:
        return {key for key in state if key.startswith("stages.1.")}

    fc3 = ("repmlp_block.fc3.weight", "repmlp_block.fc3.bias")
    branches = [f"repmlp_block.fc3_bn.{role}" for role in norm]
    for k in (1, 3):
        branches += [f"repmlp_block.repconv{k}.bn.{role}" for role in norm]
        branches.append(f"repmlp_block.repconv{k}.conv.weight")
    state = live(ours).state_dict()
    assert found(state) == found(live(Net).state_dict()) == unit(fc3[0], *branches)
    assert found(deploy_state_dict(state)) == unit(*fc3)
    rest = {key.split(".")[0] for key in state}
    assert rest == {"conv_embedding", "embeds", "stages", "head_norm", "head"}


# -- partitions, which no weights tell -------------------------------------------------------------


def block(**options: Any) -> RepMLPBlock:
    settings = {"img_size": (8, 4), "partition": (4, 2), "groups": 2, "kernels": (1,)}
    return RepMLPBlock(4, 6, **{**settings, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernels": ((3, 1), 1)},
        {"img_size": (4, 2), "kernels": ((3, 1),)},
        {"partition": (2, 4), "kernels": ((1, 3), 1)},
        {"fc3_window": 5},
    ],
)
@pytest.mark.parametrize("by", ["deploy", "engine"])
def test_the_model_tells_its_partitions(tmp_path: Path, options: dict[str, Any], by: str) -> None:
    saved, other = (live(lambda: block(**options), seed) for seed in (0, 7))
    x = torch.randn(2, 4, *saved.grid.size).double()
    plain = other.fuse() if by == "deploy" else refold.reparameterize(other, x)
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    load_checkpoint(plain, tmp_path / "a.pth")
    with torch.no_grad():
        assert error(saved(x), plain(x)) <= EXACT


def test_without_a_model_partitions_are_square() -> None:
    square, oblong = (live(lambda p=p: block(partition=p)) for p in ((4, 4), (4, 2)))
    x = torch.randn(2, 4, 8, 4).double()
    plain = live(lambda: block(partition=(4, 4), deploy=True), seed=7)
    plain.load_state_dict(deploy_state_dict(square.state_dict()))
    with torch.no_grad():
        assert error(square(x), plain(x)) <= EXACT
    with pytest.raises(CheckpointError, match=r"gives 48 of 6 channels, .* knows its partitions"):
        deploy_state_dict(oblong.state_dict())


def test_the_first_repmlp_of_a_stranger_is_the_same(tmp_path: Path) -> None:
    saved = live(lambda: Perceptron((4, 6), (8, 6), (4, 3), 2, (1, 3), 2))
    x = torch.randn(2, 4, 8, 6).double()
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    options = {"img_size": (8, 6), "partition": (4, 3), "kernels": (1, 3), "reduction": 2}
    for form in (False, True):
        model = live(lambda form=form: block(**options, deploy=form), seed=7)
        assert load_checkpoint(model, tmp_path / "a.pth").folded == (2 if form else 0)
        with torch.no_grad():
            assert error(saved(x), model(x)) <= EXACT


# -- what is no RepMLP, and the command ------------------------------------------------------------


def test_layers_that_happen_to_be_called_fc3_are_left_alone() -> None:
    linear = {"fc3.weight": torch.ones(4, 3), "fc3.bias": torch.ones(4)}
    norm = {f"fc3_bn.{key}": value for key, value in nn.BatchNorm1d(4).state_dict().items()}
    conv = {"fc3.weight": torch.ones(4, 3, 1, 1)}
    for state in (linear, linear | norm, conv | norm):
        with pytest.raises(CheckpointError, match="no known layout"):
            deploy_state_dict(state)


def test_a_missing_norm_is_named() -> None:
    state = live(Net).state_dict()
    del state["stages.1.0.repmlp_block.repconv3.bn.weight"]
    with pytest.raises(CheckpointError, match=r"there is no .*repmlp_block\.repconv3\.bn\.weight"):
        deploy_state_dict(state)


@pytest.mark.parametrize(("layout", "folded"), [("RepMLP", 11), ("RepMLPNet", 3)])
def test_weights_alone_convert(
    tmp_path: Path, layout: str, folded: int, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = live(NETS["RepMLP"] if layout == "RepMLP" else Net)
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    out = str(tmp_path / "b.safetensors")
    assert main(["convert", str(tmp_path / "a.pth"), "-o", out, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["layout"], said["folded"]) == (layout, folded)
    assert main(["convert", out, "-o", str(tmp_path / "c.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folded"] == 0
