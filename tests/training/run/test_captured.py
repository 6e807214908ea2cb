"""A step that is captured and replayed is the step that runs plainly.

There is no CUDA graph on a CPU: `Tape` stands for it. It notes the operators of a step with their
tensors and computes them again on the same memory, without running any Python of the step: what a
step bakes in, such as a learning rate that is a number, is baked into it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import refold
from refold.errors import InputError, TrainingError
from refold.training import Habits
from refold.training.loop import captured
from refold.training.loop.captured import CapturedStep, check_capturable, make_capturable, set_rates
from refold.training.loop.learner import BatchOutcome, CrossEntropy, Learner
from refold.training.loop.state import Parts, Position
from refold.training.recipes.cookbook import load_recipe
from refold.training.run import setup
from training.pictures import folders
from training.runs import TINY, Fragile, last, records

_READS = ("_local_scalar_dense", "nonzero", "equal.default")


class _Notes(TorchDispatchMode):
    """Notes every operator with its tensors, and refuses what reads from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in _READS):
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, out))
        return out


class Tape:
    """Stands for a CUDA graph. The run while noting counts as the first replay."""

    made: list[Tape]

    def __init__(self) -> None:
        self.notes, self.pending, self.warm, self.replays = _Notes(), False, 0, 0
        Tape.made.append(self)

    def warm_up(self, step: Callable[[], BatchOutcome]) -> BatchOutcome:
        self.warm += 1
        return step()

    def capture(self, step: Callable[[], BatchOutcome]) -> BatchOutcome:
        self.pending = True
        with self.notes:
            return step()

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self.pending:
            self.pending = False
            return
        for func, args, kwargs, out in self.notes.calls:
            new = func(*args, **kwargs)
            for mine, value in zip(_tensors(out), _tensors(new), strict=True):
                if mine.data_ptr() != value.data_ptr():
                    mine.copy_(value)


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [x for x in values if isinstance(x, Tensor)]


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    Tape.made = []
    monkeypatch.setattr(captured, "CudaGraph", Tape)
    monkeypatch.setattr(setup, "check_capturable", lambda *args: None)
    return Tape.made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("images"), train=10, val=4)


def _run(output: Path, data: Path, *, cuda_graph: bool, **options: Any) -> list[float]:
    """Train and return the loss of every step."""
    torch.manual_seed(0)  # the weights of the network
    changes = {**TINY, "epochs": 2, "clip": 0.5, "ema": 0.8, "options": {}, "schedule.warmup": 0.5}
    refold.train(
        None if options.get("resume") else "folder", output=output, data=data,
        model=Fragile(), changes={} if options.get("resume") else changes,
        habits=Habits(log_steps=1, workers=0, cuda_graph=cuda_graph), tracker="none", cpu=True,
        **options,
    )  # fmt: skip
    return [record["loss"] for record in records(output, "step")]


def _near(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].double(), other[name].double(), rtol=1e-4, atol=1e-6)
        for name in one
    )


@pytest.mark.slow
def test_a_run_of_replays_is_the_plain_run(
    tmp_path: Path, data: Path, tape: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _run(tmp_path / "a", data, cuda_graph=False)
    assert not tape
    found = _run(tmp_path / "b", data, cuda_graph=True)
    assert len(plain) == len(found) == 10
    assert (tape[0].warm, tape[0].replays) == (3, 7)
    assert found == pytest.approx(plain, rel=1e-4)  # SGD in one kernel rounds in other places
    assert _near(last(tmp_path / "a"), last(tmp_path / "b"))
    # A rate that is baked into the graph is seen: it changes from step to step.
    monkeypatch.setattr(setup, "make_capturable", lambda *args: None)
    naive = _run(tmp_path / "c", data, cuda_graph=True)
    assert naive[:4] == pytest.approx(plain[:4], rel=1e-4)
    assert not _near(last(tmp_path / "a"), last(tmp_path / "c"))


class _Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Fragile()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * (1.0 if float(y.detach().sum()) < 1e9 else 2.0)


def test_a_step_that_reads_a_number_is_refused(
    tmp_path: Path, data: Path, tape: list[Tape]
) -> None:
    with pytest.raises(TrainingError, match=r"cannot be captured .* leave out --cuda-graph"):
        refold.train(
            "folder", output=tmp_path / "run", data=data, model=_Reads(),
            changes={**TINY, "options": {}}, tracker="none", cpu=True,
            habits=Habits(workers=0, cuda_graph=True),
        )  # fmt: skip


def test_other_batches_run_without_the_graph(tape: list[Tape]) -> None:
    weight = torch.zeros(3)

    def step(images: Tensor, targets: Tensor) -> BatchOutcome:
        weight.add_(images.sum(0))
        return BatchOutcome(weight.sum(), targets.sum(), targets.sum())

    run = CapturedStep(step, "net")
    for at in range(6):
        outcome = run(torch.full((2, 3), float(at)), torch.tensor([at, 0]))
        assert float(outcome.right) == at
    assert tape[0].replays == 3
    small = run(torch.ones(1, 3), torch.tensor([7]))
    assert float(small.right) == 7
    assert tape[0].replays == 3
    assert torch.equal(weight, torch.full((3,), 2.0 * 15 + 1))


_REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, int, str]] = [
    ({}, {}, "cpu", 1, "this run is on cpu"),
    ({}, {}, "cuda", 2, "2 processes"),
    ({"precision": "fp16"}, {}, "cuda", 1, "fp16"),
    ({"accumulate": 2}, {}, "cuda", 1, "accumulate is 2"),
    ({}, {"recompute": True}, "cuda", 1, "--recompute"),
    ({}, {"compile": True}, "cuda", 1, "--compile"),
]


@pytest.mark.parametrize(("changes", "habits", "device", "processes", "words"), _REFUSED)
def test_what_a_graph_cannot_do_is_refused(
    changes: dict[str, Any], habits: dict[str, Any], device: str, processes: int, words: str
) -> None:
    recipe = load_recipe("folder").model_copy(update=changes)
    with pytest.raises(InputError, match=f"--cuda-graph .*{words}"):
        check_capturable(recipe, Habits(**habits), torch.device(device), processes)
    good = load_recipe("folder").model_copy(update={"precision": "bf16"})
    check_capturable(good, Habits(), torch.device("cuda"), 1)


def test_on_a_cpu_it_is_one_error(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="this run is on cpu, and CUDA graphs are an NVIDIA GPU's"):
        _run(tmp_path / "run", data, cuda_graph=True)


def test_optimizers_that_compute_on_the_device() -> None:
    import timm.optim

    def made(name: str) -> Any:
        groups = [{"params": [nn.Parameter(torch.ones(2, 2))], "factor": 0.5}]
        return timm.optim.create_optimizer_v2(groups, opt=name, lr=0.1)

    cpu = torch.device("cpu")
    for name in ("adam", "adamw", "nadam", "radam", "rmsprop"):
        optimizer = made(name)
        make_capturable(optimizer, name, cpu)
        group = optimizer.param_groups[0]
        rate = group["lr"]
        set_rates(optimizer, 0.4)
        assert group["capturable"]
        assert group["lr"] is rate
        assert float(rate) == pytest.approx(0.2)
    with pytest.raises(InputError, match=r"optimizer.name 'lamb' .* choose sgd, adam"):
        make_capturable(made("lamb"), "lamb", cpu)


def _parts(*, capturable: bool) -> Parts:
    """Return a learner and its optimizer after one step on the host."""
    torch.manual_seed(0)
    learner = Learner(nn.Linear(2, 2), CrossEntropy(), 0.0)
    optimizer = torch.optim.AdamW([{"params": list(learner.parameters()), "factor": 1.0}], 0.1)
    learner(torch.ones(2, 2), torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    if capturable:
        make_capturable(optimizer, "adamw", torch.device("cpu"))
    return Parts(learner, optimizer, None, None, Position())


def test_a_checkpoint_does_not_say_how_to_compute() -> None:
    plain, graph = _parts(capturable=False), _parts(capturable=True)
    assert plain.snapshot().tensors.keys() == graph.snapshot().tensors.keys()
    plain.restore(graph.snapshot())
    graph.restore(plain.snapshot())
    (one,), (other,) = plain.optimizer.param_groups, graph.optimizer.param_groups
    assert (one["lr"], one["capturable"]) == (0.1, False)
    assert isinstance(other["lr"], Tensor)
    assert other["capturable"]
