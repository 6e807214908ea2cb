"""Parts that do the same in every run: other runs of a root do not look into them again.

Whatever a fold makes of a network must be what it makes where every run looks into every part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import conv, images, live
from refold.graph.trace import recording
from refold.graph.trace.other_runs import evidence
from refold.graph.trace.other_runs.needless import Needless

X = images(1, 4, 12, 12)
Norm = nn.BatchNorm2d


class Part(nn.Module):
    """A layer and its norm; `run` is the forward under test."""

    def __init__(self, run: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4), Norm(4)
        self.run = run

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = self.norm(self.conv(x))
        return y if self.run is None else self.run(self, x, y, *args, **kwargs)


class Plain(nn.Module):
    """A layer and its norm, and nothing that anyone could ask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv(4, 4), Norm(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Net(nn.Module):
    """A steady stem, a part, and a tail that asks for a size."""

    def __init__(self, part: nn.Module, run: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.stem, self.part = nn.Sequential(Plain(), Plain()), part
        self.tail, self.norm = conv(4, 4), Norm(4)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        y = self.part(y) if self.run is None else self.run(self, y)
        n = y.shape[0]
        return self.norm(self.tail(y)).reshape(n, -1)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Needless]:
    """Note the parts that are found to be steady."""
    noted, of = list[Needless](), Needless.of

    def noting(*args: Any) -> Needless:
        noted.append(of(*args))
        return noted[-1]

    monkeypatch.setattr(Needless, "of", noting)
    return noted


def test_other_runs_do_not_look_into_them(
    found: list[Needless], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, run = list[Any](), recording._run

    def noting(recorder: Any, *args: Any, **options: Any) -> None:
        run(recorder, *args, **options)
        runs.append(recorder)

    monkeypatch.setattr(recording, "_run", noting)
    folded = refold.reparameterize(live(Net(Plain())), X, check=False)
    assert not any(isinstance(module, Norm) for module in folded.modules())
    assert found[0].steady == {"stem": ((0, 4),), "part": ((0, 4),)}
    first, *others = (one for one in runs if not one.counts_only)
    called = [{str(n.target) for n in one.graph.nodes} for one in (first, *others)]
    assert "stem.0.conv" in called[0]
    assert others
    assert all("stem" in names and "stem.0.conv" not in names for names in called[1:])


def adds_in_place(part: Any, x: Tensor, y: Tensor) -> Tensor:
    x.add_(1)
    return y + 1


def hands_on(part: Any, x: Tensor, y: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(y)
    return y * 2


def gives_back(part: Any, x: Tensor, y: Tensor) -> Tensor:
    return x


def two(part: Any, x: Tensor, y: Tensor) -> Any:
    return y, x


def branches(part: Any, x: Tensor, y: Tensor) -> Tensor:
    return y if x.shape[-1] > 9 else part.norm(y)


def tries(part: Any, x: Tensor, y: Tensor) -> Tensor:
    try:
        return y + torch.ones(1, 4, 12, 12)
    except RuntimeError:
        return part.norm(y)


def picks(part: Any, x: Tensor, y: Tensor) -> Tensor:
    return y[:, :, :-1]


def halves(part: Any, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([one * 2 for one in y.unbind(-1)], -1).reshape(y.shape)


def scales(part: Any, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
    return y * factor


def flags(part: Any, x: Tensor, y: Tensor, flag: Any = None) -> Tensor:
    return y if flag is None else part.norm(y)


def ranks(part: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.relu(y) if y.ndim == 4 else y


def leaves(part: Any, x: Tensor, y: Tensor) -> Tensor:
    part.last = y
    return y + 1


def noisy(part: Any, x: Tensor, y: Tensor) -> Tensor:
    return y + torch.randn_like(y) * 0


def kinds(part: Any, x: Tensor, y: Tensor) -> Tensor:
    return y.float() if y.dtype == torch.float16 else y


def reads_again(net: Any, y: Tensor) -> Tensor:
    return net.part(y) + y


def hands_a_list(net: Any, y: Tensor) -> Tensor:
    seen = list[Tensor]()
    return net.part(y, seen) + seen[0]


def by_size(net: Any, y: Tensor) -> Tensor:
    return net.part(y, y.shape[-1] / 4)


def by_flag(net: Any, y: Tensor) -> Tensor:
    return net.part(y, flag=True if y.shape[-1] == 12 else None)


def twice(net: Any, y: Tensor) -> Tensor:
    return net.part(net.part(y))


def at_times(net: Any, y: Tensor) -> Tensor:
    return net.part(y) if y.shape[-1] > 9 else y


def of_a_pair(net: Any, y: Tensor) -> Tensor:
    one, other = net.part(y)
    return one + other


NETS: dict[str, tuple[Callable[..., Any] | None, Callable[..., Any] | None]] = {
    "plain": (None, None),
    "changes what it is given": (adds_in_place, reads_again),
    "hands a value to a list": (hands_on, hands_a_list),
    "gives back what it is given": (gives_back, reads_again),
    "gives a pair": (two, of_a_pair),
    "branches on a size": (branches, None),
    "catches an error": (tries, None),
    "picks": (picks, None),
    "as many calls as positions": (halves, None),
    "is given a size": (scales, by_size),
    "is given a flag that a size decides": (flags, by_flag),
    "asks for the rank": (ranks, None),
    "keeps a value": (leaves, None),
    "draws": (noisy, None),
    "asks for the type": (kinds, None),
    "is called twice": (None, twice),
    "is called at some sizes": (None, at_times),
}
STEADY = {
    "plain",
    "asks for the rank",
    "is called at some sizes",
    "is given a flag that a size decides",
}


def made(name: str) -> nn.Module:
    of_part, of_net = NETS[name]
    torch.manual_seed(0)
    return live(Net(Part(of_part), of_net).double())


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_a_fold_makes_of_them_what_it_makes_where_all_is_seen(
    name: str, given: bool, found: list[Needless], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, example = made(name), X.double() if given else None
    plan = refold.plan(model, example)
    steady = {path for one in found for path in one.steady}
    assert "stem" in steady or name == "keeps a value"
    if given:
        assert ("part" in steady) == (name in STEADY)
    folded = plan.apply()
    with torch.no_grad():
        for x in (images(2, 4, 12, 12), images(3, 4, 7, 9), images(1, 4, 12, 5)):
            wanted, got = (_result(one, x.double()) for one in (model, folded))
            assert type(wanted) is type(got)
            if isinstance(wanted, Tensor):
                assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()
    monkeypatch.setattr(evidence.Needless, "of", lambda *args: Needless(False, {}))
    assert str(refold.plan(model, example)) == str(plan)


def _result(model: nn.Module, x: Tensor) -> Any:
    try:
        return model(x.clone())
    except RuntimeError as error:
        return error
