"""Two processes that share a batch train as one process with the whole of it.

Oracle: torch's own batch norm, and the same recipe in one process.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from refold.errors import InputError, RefusedError
from refold.training.data.datasets import open_data
from refold.training.data.loader import TrainOrder
from refold.training.loop.norms import sync_norms, unsync_norms
from refold.training.loop.saves import Saves
from refold.training.stopping import Stopped
from training.pictures import folders
from training.run.processes import PAIR, fsdp_run, norm_case, shared_run
from training.runs import AtStep, last, records, start

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("processes.py")


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def torchrun(*words: str | Path, processes: int = 2):
    head = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return start(*head, "--master-port", str(free_port()), *words)


@dataclass(frozen=True)
class Pair:
    """What two processes did: their folder, and the image that only the second came upon."""

    folder: Path
    number: int
    broken: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Start two processes once, and let them do all that the tests look at.

    One process forks them: what `torchrun` adds is three times the imports.
    """
    folder = tmp_path_factory.mktemp("pair")
    # 34 images: 4 steps of 8; 10 to judge
    data, intact = (folders(folder / name, train=17, val=5) for name in ("data", "whole"))
    number, broken = breaks_for_the_second(data)
    with pytest.raises(Stopped):
        fsdp_run(folder / "stopped", intact, reporter=AtStep(3))
    done = start(SCRIPT, "all", folder, MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    return Pair(folder, number, broken)


def test_two_processes_train_as_one(pair: Pair) -> None:
    shared_run(pair.folder / "one", pair.folder / "data", "dbb")
    assert_one_run(pair)


@pytest.mark.zoo
def test_two_processes_train_a_network_by_name_as_one(tmp_path: Path) -> None:
    data = folders(tmp_path / "data", train=17, val=5)
    pair = Pair(tmp_path, *breaks_for_the_second(data))
    shared_run(tmp_path / "one", data, "none")
    done = torchrun(SCRIPT, tmp_path / "two", data, "none")
    assert done.returncode == 0, done.stderr
    assert_one_run(pair)


def assert_one_run(pair: Pair) -> None:
    """Check the run `two` of two processes against the run `one` of one."""
    folder, number, broken = pair.folder, pair.number, pair.broken
    assert_equal_runs(folder / "one", folder / "two")
    summaries = [json.loads((folder / run / "summary.json").read_text()) for run in ("one", "two")]
    for summary in summaries:  # and the synchronised norms folded
        assert summary["same_answers"] == summary["answers"] == 10
        assert summary["error"]["float64"] < 1e-9
        assert summary["unreadable"] == {"train": [broken], "val": []}
    for run in ("one", "two"):  # and a run that goes on still knows what another process met
        snapshot = Saves(folder / run).read()
        assert snapshot.plain["position"]["unreadable"] == [number]
    for name in ("images", "top1"):
        assert summaries[0]["train_form"][name] == summaries[1]["train_form"][name]


def breaks_for_the_second(data: Path) -> tuple[int, str]:
    """Break an image that of two processes only the second comes upon; return number and name."""
    source = open_data(str(data), "classify").train
    met = [set[int](), set[int]()]
    for rank, numbers in enumerate(met):
        order = TrainOrder(len(source), PAIR["batch_size"], 0, 2, rank, 2)
        for epoch in range(PAIR["epochs"]):
            order.at(epoch)
            numbers.update(index for keys in order for _, index in keys)
    number = min(met[1] - met[0])
    path = Path(source.name(number))
    path.write_bytes(path.read_bytes()[:40])
    return number, str(path)


def assert_equal_runs(run: Path, other: Path) -> None:
    one, two = ([r["loss"] for r in records(at, "step")] for at in (run, other))
    assert len(one) == len(two) == 8
    assert len(set(one)) == 8  # it learns, and every step is another one
    assert max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)) < 1e-5
    one, two = last(run), last(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value.double(), two[name].double(), rtol=1e-3, atol=1e-5), name


def test_two_processes_that_share_the_weights_train_as_one(pair: Pair) -> None:
    data = pair.folder / "whole"
    one, two, stopped = (pair.folder / name for name in ("one-fsdp", "two-fsdp", "stopped"))
    fsdp_run(one, data)
    assert_equal_runs(one, two)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert summaries[1]["same_answers"] == summaries[1]["answers"] == 10
    assert summaries[1]["error"]["float64"] < 1e-9
    for form in ("train_form", "deployed_form"):
        assert summaries[0][form] == pytest.approx(summaries[1][form], rel=1e-5)
    # A checkpoint of one process serves two, and the other way round.
    assert (stopped / "checkpoints" / "last").read_text() == "step-000000006.safetensors\n"
    fsdp_run(stopped, data, resume=True)
    assert_equal_runs(one, stopped)


def test_fsdp_of_one_process_or_of_accelerate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folders(tmp_path / "data")
    with pytest.raises(
        InputError, match=r"--fsdp .* there is only one process: start several with torchrun"
    ):
        fsdp_run(tmp_path / "run", data, fsdp=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp` does
    with pytest.raises(InputError, match=r"Accelerate's FSDP.* for FSDP use refold train --fsdp"):
        fsdp_run(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_synchronised_norm_is_the_norm_of_the_whole_batch(pair: Pair) -> None:
    halves = [torch.load(pair.folder / f"{rank}.pt") for rank in (0, 1)]
    x, like, norm = norm_case()
    x.requires_grad_()
    out = norm(x)
    (out * like).sum().backward()
    assert torch.allclose(torch.cat([h["out"] for h in halves]), out, rtol=1e-10, atol=1e-10)
    assert torch.allclose(torch.cat([h["x"] for h in halves]), x.grad, rtol=1e-8, atol=1e-10)
    assert torch.allclose(halves[0]["weight"] + halves[1]["weight"], norm[0].weight.grad)
    for half in halves:
        assert torch.allclose(half["mean"], norm[0].running_mean)
        assert torch.allclose(half["var"], norm[0].running_var)


def test_synchronised_norms_come_and_go() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm3d(4)))
    names = list(net.state_dict())
    assert sync_norms(net) == 3
    assert sync_norms(net) == 3  # twice is once
    assert list(net.state_dict()) == names
    assert unsync_norms(net) == 3
    assert [type(net[0]), type(net[1][1])] == [nn.BatchNorm1d, nn.BatchNorm3d]


def test_a_norm_of_its_own_kind_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        pass

    net = nn.Sequential(nn.BatchNorm2d(2), Own(3))
    with pytest.raises(RefusedError, match=r"1 is a Own, .*sync_norms=false"):
        sync_norms(net)
    assert type(net[0]) is nn.BatchNorm2d  # nothing is half done
