"""A run from images to files: each task, each option, each thing that can go wrong on the way."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import torch

import refold
from refold.errors import CheckpointError, InputError, TrainingError
from refold.training import Habits, network_of
from refold.training.loop.saves import LAST, Saves
from refold.training.loop.snapshot import Snapshot
from training.pictures import folders, masks, shards
from training.runs import WHOLE, Fragile, last, records, same_bits, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"), train=10, val=4)


def net(**options) -> Fragile:
    torch.manual_seed(5)
    return Fragile(**options)


def test_a_run_from_images_to_files(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    done = tiny(run, data, model=net(), changes={"block": "acb", **WHOLE})
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "images.txt.gz", "metrics.jsonl", "checkpoints",
        "deploy.safetensors", "deploy.onnx", "stock.safetensors", "summary.json",
    }  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary == done.summary
    assert summary["same_answers"] == summary["answers"] == 8
    assert summary["error"]["float64"] < 1e-9
    assert 0 < summary["error"]["as_written"] < 1e-4
    form, plain = summary["train_form"], summary["deployed_form"]
    assert plain["parameters"] < form["parameters"]
    assert plain["top1"] == form["top1"]
    # The files compute what the network does that trained.
    x = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        wanted = done.model(x)
    session = onnxruntime.InferenceSession(run / "deploy.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(got), wanted, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in done.deployed.modules())
    state = safetensors.torch.load_file(run / "deploy.safetensors")
    assert state.keys() == done.deployed.state_dict().keys()
    assert {r["step"] for r in records(run, "step")} == set(range(1, 11))
    assert [r["epoch"] for r in records(run, "epoch")] == [1, 2]


class Skip(torch.nn.Module):
    """A residual block, whose sum can be replaced by a layer, between layers of other widths."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        parts = torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.ReLU
        conv, norm, relu = parts
        self.stem = torch.nn.Sequential(conv(3, 4, 3, 2, 1, bias=False), norm(4), relu())
        self.branch = torch.nn.Sequential(
            conv(4, 6, 3, 1, 1, bias=False), norm(6), relu(), conv(6, 4, 3, 1, 1), norm(4)
        )
        self.head, self.gated = torch.nn.Linear(4, 2), gated

    def forward(self, x):
        x = self.stem(x)
        y = self.branch(x)
        x = x + (y * y.mean((2, 3), keepdim=True).sigmoid() if self.gated else y)
        return self.head(x.relu().mean((2, 3)))


def test_a_caller_may_have_switched_gradients_off(tmp_path: Path, data: Path) -> None:
    with torch.inference_mode():
        run = tiny(tmp_path / "run", data)
    assert run.summary["epochs"] > 0


def test_a_recipe_can_end_without_residuals(tmp_path: Path, data: Path) -> None:
    changes = {"deploy.remove_residuals": True, "epochs": 1}
    torch.manual_seed(2)
    done = tiny(tmp_path / "run", data, model=Skip(), changes=changes)
    assert done.summary["error"]["float64"] < 1e-9
    assert done.summary["same_answers"] == done.summary["answers"] == 8
    convs = [m for m in done.deployed.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [4, 10, 4]  # four ride along with six
    graph = torch.fx.symbolic_trace(done.deployed)
    assert not [node for node in graph.graph.nodes if "add" in node.name]
    with pytest.raises(InputError, match=r"remove_residuals cannot be done, 1 additions have to"):
        tiny(tmp_path / "no", data, model=Skip(gated=True), changes=changes)
    assert not (tmp_path / "no").exists()  # found out before the training, not after it


def test_a_block_has_options_of_its_own(tmp_path: Path, data: Path) -> None:
    changes = {"block": "mobileone", "block_options.num_conv_branches": 3, "epochs": 1}
    done = tiny(tmp_path / "run", data, model=net(), changes=changes)
    kernels = [m for m in done.model.modules() if getattr(m, "kernel_size", 0) == (3, 3)]
    assert len(kernels) == 3
    assert done.summary["error"]["float64"] < 1e-9
    changes = {"block": "acb", "block_options.branches": 3}
    with pytest.raises(
        InputError, match=r"block_options\.branches: acb has no such option; it has"
    ):
        tiny(tmp_path / "no", data, model=net(), changes=changes)


def test_the_network_of_a_run_comes_back(tmp_path: Path, data: Path) -> None:
    done = tiny(tmp_path / "run", data, changes={"epochs": 1})
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        best = network_of(tmp_path / "run", "best")(x)
        fresh = network_of(tmp_path / "run", None)(x)
        assert torch.equal(best, done.model(x))
        assert not torch.allclose(fresh, best)
    with pytest.raises(InputError, match="holds no run"):
        network_of(tmp_path)
    given = tiny(tmp_path / "given", data, model=net(), changes={"epochs": 1, "block": "acb"})
    again = network_of(tmp_path / "given", "best", model=net())
    assert same_bits(again.state_dict(), given.model.state_dict())
    with pytest.raises(InputError, match="a network of yours: give it again"):
        network_of(tmp_path / "given")


def test_embeddings_are_judged_by_pairs(tmp_path: Path, data: Path) -> None:
    (tmp_path / "val").mkdir()
    shutil.copytree(data / "train", tmp_path / "train")
    shutil.copytree(data / "val" / "ant", tmp_path / "val" / "cow")  # classes of its own
    shutil.copytree(data / "val" / "bee", tmp_path / "val" / "dog")
    changes = {
        "task": "embed", "loss.name": "arcface", "model": "faceresnet", "augment.size": 32,
        "options": {"width": 0.0625, "embedding": 8, "img_size": 32}, "epochs": 1,
    }  # fmt: skip
    done = tiny(tmp_path / "run", tmp_path, changes=changes)
    assert done.summary["same_answers"] == done.summary["answers"] == 24  # 12 pairs of either kind
    assert 0 <= done.summary["train_form"]["verification"] <= 1
    assert "learner.loss.weight" in last(tmp_path / "run")  # the classes' directions are kept, too


class Painter(torch.nn.Module):
    """Classes of pixels, at half the size and with an auxiliary output."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.head, self.aux = torch.nn.Conv2d(4, 2, 1), torch.nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.body(x)
        return (self.head(y), self.aux(y)) if self.training else self.head(y)


def test_masks_are_learnt(tmp_path: Path) -> None:
    masks(tmp_path / "data", train=8, val=4)
    torch.manual_seed(0)
    changes = {"task": "segment", "epochs": 6, "optimizer.lr": 0.3, "augment.size": 16, "ema": None}
    done = tiny(tmp_path / "run", tmp_path / "data", model=Painter(), changes=changes)
    assert done.summary["answers"] == done.summary["same_answers"] == 4 * 16 * 16
    assert done.summary["train_form"]["miou"] > 0.8


def test_shards_train(tmp_path: Path) -> None:
    shards(tmp_path)
    done = tiny(tmp_path / "run", tmp_path, model=net(), changes={"epochs": 1})
    assert done.summary["answers"] == 4


def test_unreadable_images_are_named_at_the_end(tmp_path: Path) -> None:
    folders(tmp_path)
    broken = tmp_path / "train" / "bee" / "2.png", tmp_path / "val" / "ant" / "0.png"
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    done = tiny(tmp_path / "run", tmp_path, model=net(), workers=1)
    assert done.summary["unreadable"] == {"train": [str(broken[0])], "val": [str(broken[1])]}
    assert done.summary["train_form"]["images"] == done.summary["answers"] == 5


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, data: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 3 of epoch 2 is nan.*step-000000005.*lr"):
        tiny(tmp_path / "run", data, model=net(after=7))
    kept = last(tmp_path / "run")
    assert all(value.isfinite().all() for value in kept.values())
    with pytest.raises(TrainingError, match="there is no checkpoint before it"):
        tiny(tmp_path / "other", data, model=net(after=0))


def test_accumulated_pieces_are_the_batch(tmp_path: Path, data: Path) -> None:
    for pieces in (1, 2):
        plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 2))
        torch.nn.init.constant_(plain[1].weight, 0.01)
        torch.nn.init.zeros_(plain[1].bias)
        tiny(tmp_path / str(pieces), data, model=plain, changes={"accumulate": pieces})
    one, two = (last(tmp_path / str(pieces)) for pieces in (1, 2))
    assert not same_bits(one, two)  # the sum is another one
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "precision": "bf16", "clip": 1.0},
        {"mix.mixup": 0.4, "mix.cutmix": 1.0, "loss.smoothing": 0.1, "loss.name": "bce"},
        {"slimming.l1": 1e-3, "slimming.gamma": 0.5, "schedule.kind": "steps"},
    ],
)
def test_options_train_and_resume(tmp_path: Path, data: Path, changes: dict) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    tiny(whole, data, model=net(), changes=changes)
    with pytest.raises(TrainingError):
        tiny(run, data, model=net(after=6), changes=changes, save_steps=1)
    tiny(run, data, model=net(), resume=True)
    assert same_bits(last(whole), last(run))


def test_few_images_make_the_batch_smaller(tmp_path: Path, data: Path) -> None:
    done = tiny(tmp_path / "run", data, model=net(), changes={"batch_size": 40}, dry_run=True)
    assert (done.summary["batch"], done.summary["steps"]) == (5, 4)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="is not a multiple of 3"):
        tiny(tmp_path / "run", data, model=net(), changes={"accumulate": 3}, dry_run=True)


def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, data: Path
) -> None:
    cases = (
        ({"model": net(classes=5)}, r"returns \(2, 5\).*needs 2 classes"),
        (
            {"changes": {"model": "repvgg_a9"}},
            "'repvgg_a9' is not a MODEL: .*did you mean repvgg_a",
        ),
        ({"changes": {"block": "dbc"}}, "there is no block 'dbc'"),
        ({"model": torch.nn.Linear(3, 2)}, "does not run on images of 3x12x12"),
        ({"changes": {"optimizer.name": "nope"}}, "nope"),
    )
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            tiny(tmp_path / "run", data, **options)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path) -> None:
    saves = Saves(tmp_path)
    small = Snapshot({"a": torch.ones(10)}, {"n": 1})
    saves.write(small, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # no file may have more than 1 MiB: the disk is full in the middle of the write
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
        with pytest.raises(TrainingError, match=r"step 2 could not be written.*step-000000001"):
            saves.write(Snapshot({"a": torch.ones(2**20)}), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    found = saves.read()
    assert found is not None
    assert found.plain == {"n": 1}
    assert torch.equal(found.tensors["a"], torch.ones(10))
    assert {path.name for path in saves.folder.iterdir()} == {"last", "step-000000001.safetensors"}


def test_too_little_room_is_seen_before_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves = Saves(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 2**20))
    with pytest.raises(
        TrainingError, match=r"needs 5\.\d MiB, and .* has 1\.0 free.*there is none yet"
    ):
        saves.write(Snapshot({"a": torch.ones(2**20)}), 1)
    assert not list(saves.folder.iterdir())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    saves = Saves(tmp_path)
    assert saves.read() is None
    path = saves.write(Snapshot({"a": torch.ones(100)}, {}), 7, (LAST, "best"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"step-000000007.safetensors, which .*last names"):
        saves.read()


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied = torch.ones(3)
    Saves(tmp_path).write(Snapshot({"a": tied, "b": tied, "c": tied[1:]}), 1)
    found = Saves(tmp_path).read()
    assert found is not None
    assert {name: len(value) for name, value in found.tensors.items()} == {"a": 3, "b": 3, "c": 2}


def test_tensorboard_hears_of_it(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("tensorboard")
    refold.train(
        "folder", output=tmp_path / "run", data=data, model=net(), tracker="tensorboard", cpu=True,
        changes={"epochs": 1, "batch_size": 4, "augment.size": 12}, habits=Habits(workers=0),
    )  # fmt: skip
    assert list((tmp_path / "run" / "tracker").rglob("events.out.*"))
