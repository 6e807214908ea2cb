"""What training scripts write around the weights is read through; several sets are told apart."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import pathlib
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refold.blocks import RepVGGBlock
from refold.checkpoint import load_checkpoint, read_state_dict, read_weights
from refold.cli.app import main
from refold.errors import CheckpointError

State = dict[str, Tensor]


class Net(nn.Module):
    """Three names of two depths, one of them a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("grid", torch.arange(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


def alive(seed: int) -> Net:
    torch.manual_seed(seed)
    net = Net()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return net


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def other(state: State) -> State:
    return {key: tensor + 1 for key, tensor in state.items()}


def is_loaded(net: nn.Module, state: State) -> bool:
    return all(torch.equal(state[key], tensor) for key, tensor in net.state_dict().items())


ADAM = {"state": {0: {"exp_avg": torch.ones(2, 4)}}, "param_groups": [{"lr": 0.1}]}
WRAPPINGS: dict[str, Callable[[Net, State], Any]] = {
    "model_state": lambda m, s: {"epoch": 3, "model_state": s, "optimizer_state": ADAM},
    "net": lambda m, s: {"net": s, "acc": np.float64(93.1)},
    "averaged params": lambda m, s: {"params": other(s), "params_ema": s},
    "unknown name": lambda m, s: {"my_best_weights": s, "epoch": 2, "optimizer": ADAM},
    "unknown, deep": lambda m, s: {"run": {"last": {"weights": s}}, "opt": ADAM},
    "in a tuple": lambda m, s: (s, ADAM),
    "beside an average by number": lambda m, s: {"model": s, "ema": {"shadow": [torch.ones(2)]}},
    "lightning": lambda m, s: {"state_dict": prefixed(s, "model.")},
    "lightning and a loss": lambda m, s: {
        "state_dict": prefixed(s, "net.") | {"loss.weight": torch.ones(2)},
        "hyper_parameters": {"weights": torch.ones(3)},
    },
    "fsdp": lambda m, s: {k.replace(".", "._fsdp_wrapped_module.", 1): t for k, t in s.items()},
    "remat": lambda m, s: prefixed(s, "_checkpoint_wrapped_module."),
    "prefixes in prefixes": lambda m, s: prefixed(s, "module.model.net."),
    "average beside the last": lambda m, s: prefixed(s, "ema_model.")
    | prefixed(other(s), "online_model.")
    | {"step": torch.tensor(3), "initted": torch.tensor(True)},
    "mirror of mmcv": lambda m, s: {
        "meta": {"epoch": 3},
        "state_dict": s | {"ema_" + k.replace(".", "_"): t for k, t in other(s).items()},
    },
    "numpy": lambda m, s: {"state_dict": {k: t.numpy() for k, t in s.items()}},
    "numpy in fortran order": lambda m, s: {k: np.asfortranarray(t.numpy()) for k, t in s.items()},
    "numpy of big ends": lambda m, s: {
        k: t.numpy().astype(t.numpy().dtype.newbyteorder(">")) for k, t in s.items()
    },
    "paths and dates": lambda m, s: {
        "state_dict": s,
        "out": pathlib.PurePosixPath("/x"),
        "date": datetime.datetime(2026, 1, 1),
        "args": argparse.Namespace(lr=0.1),
        "cfg": types.SimpleNamespace(a=1),
        "log": collections.defaultdict(list, {"loss": [0.1]}),
        "seen": {1, 2},
        "kind": torch.float16,
        "size": torch.Size([2]),
    },
    "module": lambda m, s: m,
    "module under a name": lambda m, s: {"model": m, "ema": None, "epoch": -1},
    "averaged module": lambda m, s: {"model": alive(9), "ema": m, "updates": 3},
    "module in a wrapper": lambda m, s: {"model": nn.DataParallel(m)},
    "shared module": lambda m, s: {"model": m, "best": m},
    "flat": lambda m, s: s | {"epoch": 3, "optimizer": ADAM},
    "parameters": lambda m, s: {k: nn.Parameter(t, t.is_floating_point()) for k, t in s.items()}
    | {"at": datetime.date(2026, 1, 1)},
    "the same twice": lambda m, s: {"student": prefixed(s, "module."), "teacher": dict(s)},
    "only one fits": lambda m, s: {"generator": s, "discriminator": {"w": torch.ones(1)}},
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 5}]
)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_load(tmp_path: Path, wrapping: str, options: dict[str, Any]) -> None:
    net, fresh = alive(1), alive(2)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    torch.save(WRAPPINGS[wrapping](net, state), tmp_path / "a.pth", **options)
    report = load_checkpoint(fresh, tmp_path / "a.pth")
    assert is_loaded(fresh, state)
    assert report.loaded == len(state)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("is_numpy", [False, True])
def test_plain_pickles_of_every_protocol(tmp_path: Path, protocol: int, is_numpy: bool) -> None:
    state = alive(1).state_dict()
    content = {key: tensor.numpy() if is_numpy else tensor for key, tensor in state.items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": content, "by": Path("x")}, protocol))
    fresh = alive(2)
    load_checkpoint(fresh, tmp_path / "a.pkl")
    assert is_loaded(fresh, state)


def test_halves_and_views_and_ties_keep_their_values(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "half": base.half(), "bfloat": base.bfloat16(), "turned": base.t(), "part": base[1:3, ::2],
        "none": torch.empty(0, 3), "one": torch.tensor(2.0), "complex": torch.complex(base, base),
        "flag": base > 3, "float8": base.to(torch.float8_e5m2),
    }  # fmt: skip
    for zipped in (True, False):
        if not zipped:
            del state["float8"]  # which torch itself cannot read back from that form
        content = {"state_dict": state, "by": Path("x")}
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        read = read_state_dict(tmp_path / "a.pth")
        assert {*read} == {*state}
        for name, tensor in state.items():
            wanted = tensor.float() if name == "float8" else tensor
            assert torch.equal(read[name], wanted), name
            assert read[name].dtype == wanted.dtype


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    state = prefixed(alive(1).state_dict(), "net.") | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": state | {"epoch": 3}}, tmp_path / "a.ckpt")
    report = load_checkpoint(alive(2), tmp_path / "a.ckpt")
    assert report.unwrapped == ("state_dict",)
    assert report.stripped == ("net.",)
    assert report.left_out == ("loss.weight",)
    assert report.notes == ("left out what is not a tensor: epoch",)
    assert read_weights(tmp_path / "a.ckpt")[1] == report.notes


@pytest.mark.parametrize(
    ("content", "first", "second"),
    [
        (lambda a, b: {"student": a, "teacher": b}, "student", "teacher"),
        (lambda a, b: {"nets": {"student": a, "teacher": b}}, "nets.student", "nets.teacher"),
        (lambda a, b: prefixed(a, "student.") | prefixed(b, "teacher."), "student", "teacher"),
        (
            lambda a, b: {"state_dict": prefixed(a, "module.query.") | prefixed(b, "module.key.")},
            "state_dict.query", "state_dict.key",
        ),
    ],
)  # fmt: skip
def test_of_several_that_fit_one_is_chosen(
    tmp_path: Path, content: Callable[[State, State], Any], first: str, second: str
) -> None:
    one, two, fresh = alive(1).state_dict(), alive(2).state_dict(), alive(3)
    before = copy.deepcopy(fresh.state_dict())
    file = tmp_path / "a.pth"
    torch.save(content(one, two), file)
    with pytest.raises(CheckpointError, match=f"several.*{first} .*{second} .*--weights-key"):
        load_checkpoint(fresh, file)
    assert is_loaded(fresh, before)
    load_checkpoint(fresh, file, key=second)
    assert is_loaded(fresh, two)
    load_checkpoint(fresh, file, key=first)
    assert is_loaded(fresh, one)


def test_a_key_that_is_not_there_names_what_is(tmp_path: Path) -> None:
    torch.save({"student": alive(1).state_dict(), "epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="has no 'teacher'; it holds student"):
        load_checkpoint(alive(2), tmp_path / "a.pth", key="teacher")


def test_none_of_several_fits(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    torch.save({"netG": state, "netD": {"b": torch.ones(3)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"none fits .*netG \(1 tensors\), netD .*key='netG'"):
        load_checkpoint(alive(2), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"several sets of weights: netG .*, netD"):
        read_state_dict(tmp_path / "a.pth")
    assert [*read_state_dict(tmp_path / "a.pth", key="netD")] == ["b"]


def test_layers_of_a_sequence_are_no_wrappers(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"2 missing: weight, bias; 4 unexpected"):
        load_checkpoint(nn.Linear(2, 3), tmp_path / "a.pth")


def test_a_published_layout_under_a_prefix_is_folded(tmp_path: Path) -> None:
    train, deploy = RepVGGBlock(4, 4, 3, padding=1), RepVGGBlock(4, 4, 3, padding=1)
    import refold

    deploy = refold.reparameterize(deploy.eval(), torch.ones(1, 4, 5, 5))
    torch.save({"state_dict": prefixed(train.state_dict(), "model.backbone.")}, tmp_path / "a.ckpt")
    report = load_checkpoint(deploy, tmp_path / "a.ckpt")
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(deploy(x), train.eval()(x), rtol=1e-4, atol=1e-5)
    assert report.stripped == ("model.", "backbone.")


def test_the_key_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "net.py"
    source.write_text("from torch import nn\ndef build():\n    return nn.Conv2d(3, 4, 3)\n")
    one, two = nn.Conv2d(3, 4, 3).state_dict(), nn.Conv2d(3, 4, 3).state_dict()
    torch.save({"student": one, "teacher": two}, tmp_path / "a.pth")
    words = ["convert", f"{source}:build", "--checkpoint", str(tmp_path / "a.pth")]
    words += ["--input-size", "3x8x8", "-o", str(tmp_path / "b.safetensors")]
    assert main(words) == 2
    assert "--weights-key student" in capfd.readouterr().err
    assert main([*words, "--weights-key", "teacher"]) == 0
    assert torch.equal(read_state_dict(tmp_path / "b.safetensors")["weight"], two["weight"])


def test_what_a_profiler_counted_is_no_weight(tmp_path: Path) -> None:
    """A profiler leaves `total_ops` and `total_params` in every module; what else is odd stops."""
    counts = {f"{at}{name}": torch.zeros(1) for at in ("", "stem.0.") for name in _COUNTED}
    source = alive(3)
    torch.save({"model": {**source.state_dict(), **counts}}, tmp_path / "net.pth")
    net = alive(4)
    report = load_checkpoint(net, tmp_path / "net.pth")
    assert is_loaded(net, source.state_dict())
    assert set(report.left_out) == set(counts)
    torch.save({**source.state_dict(), "stem.0.gain": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"unexpected: stem\.0\.gain"):
        load_checkpoint(net, tmp_path / "odd.pth")


_COUNTED = ("total_ops", "total_params")
