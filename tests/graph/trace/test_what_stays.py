"""Code that stores something for later: it stores what it stored, and its layers still fold."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import live

LIST: list[Any] = []
TABLE: dict[str, Any] = {}
QUEUE: collections.deque[Any] = collections.deque(maxlen=2)
COUNT = 0
LATEST: Any = None


class Book:
    """An object of the user's own that keeps things."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.last: Any = None

    def save(self, value: Any) -> None:
        self.rows.append(value)


BOOK = Book()


class Part(nn.Module):
    """Two branches, and a place for everything."""

    hits = 0

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        type(self).forward = forward  # its source can be read, as that of any model
        self.a, self.na = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.last: Any = None
        self.calls, self.log, self.table = 0, list[Any](), dict[str, Any]()


class Net(nn.Module):
    """A part that stores, and two branches that have nothing to do with it."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.part = type("Part", (Part,), {})(forward)
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.more = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        return self.norm(self.conv(y)) + self.more(y)


class Reading(Net):
    """Its own code reads what the part has stored."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(self.part(x)))
        return self.norm(y) if len(self.part.log) + self.part.calls > 4 else y


def stores_a_result(self: Any, x: Tensor) -> Tensor:
    y = self.na(self.a(x))
    self.last = y
    return y


def stores_between(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    self.last = z
    return self.na(z)


def counts(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.na(self.a(x))


def appends(self: Any, x: Tensor) -> Tensor:
    y = self.na(self.a(x))
    self.log.append(y)
    return y


def appends_within(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    self.table.setdefault("z", []).append(z)
    return self.na(z)


def starts_anew(self: Any, x: Tensor) -> Tensor:
    self.log = []
    y = self.na(self.a(x))
    self.log.append(y)
    return y * len(self.log)


def averages(self: Any, x: Tensor) -> Tensor:
    y = self.na(self.a(x))
    self.last = y if self.last is None else 0.5 * self.last + 0.5 * y
    return self.last


def takes_turns(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    y = self.a(x)
    return self.na(y) if self.calls % 2 else y


def tires(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.na(x.sum(1, True).expand(-1, 4, -1, -1)) if self.calls > 4 else self.na(self.a(x))


def fills_a_global_list(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    LIST.append(z)
    return self.na(z)


def fills_a_global_table(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    TABLE["z"] = z
    return self.na(z)


def fills_a_global_queue(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    QUEUE.append(z)
    return self.na(z)


def sets_a_global(self: Any, x: Tensor) -> Tensor:
    global LATEST
    LATEST = self.a(x)
    return self.na(LATEST)


def counts_in_a_global(self: Any, x: Tensor) -> Tensor:
    global COUNT
    COUNT += 1
    y = self.na(self.a(x))
    return -y if COUNT > 3 else y


def counts_in_the_class(self: Any, x: Tensor) -> Tensor:
    Part.hits += 1
    y = self.na(self.a(x))
    return -y if Part.hits > 3 else y


def counts_in_a_table(self: Any, x: Tensor) -> Tensor:
    TABLE["n"] = TABLE.get("n", 0) + 1
    y = self.na(self.a(x))
    return y * 2 if TABLE["n"] > 2 else y


def sets_an_object(self: Any, x: Tensor) -> Tensor:
    BOOK.last = self.a(x)
    return self.na(self.a(x))


def calls_an_object(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    BOOK.save(z)
    return self.na(z)


def _note(value: Tensor) -> None:
    LIST.append(value)


def calls_a_helper(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    _note(z)
    return self.na(z)


def has_a_memo(self: Any, x: Tensor, memo: list[Any] = []) -> Tensor:  # noqa: B006
    z = self.a(x)
    memo.append(z)
    return self.na(z)


def writes_its_table(self: Any, x: Tensor) -> Tensor:
    z = self.a(x)
    vars(self)["last"] = z
    return self.na(z)


WRITERS = [stores_a_result, counts, appends, starts_anew, stores_between, has_a_memo]
WRITERS += [sets_an_object, fills_a_global_list, fills_a_global_table, fills_a_global_queue]
WRITERS += [calls_a_helper, calls_an_object]
"""Nothing is read: all folds. A norm whose input is stored goes into the convolution after it."""
READERS = [averages, takes_turns, tires, counts_in_a_global, counts_in_the_class]
READERS += [counts_in_a_table, writes_its_table, sets_a_global, appends_within]
"""A later call may run something else, or so it seems."""


def around() -> dict[str, Any]:
    """Return all that lies outside the network, copied."""
    found = {"LIST": list(LIST), "TABLE": dict(TABLE), "QUEUE": list(QUEUE), "COUNT": COUNT}
    memo = has_a_memo.__defaults__
    assert memo is not None
    found |= {"LATEST": LATEST, "rows": list(BOOK.rows), "last": BOOK.last, "hits": Part.hits}
    return found | {"memo": list(memo[0])}


def start_anew() -> None:
    global COUNT, LATEST
    COUNT, LATEST, Part.hits, BOOK.last = 0, None, 0, None
    memo = has_a_memo.__defaults__
    assert memo is not None
    for held in (LIST, TABLE, QUEUE, BOOK.rows, memo[0]):
        held.clear()


def is_same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and bool((one - two).abs().max() < 1e-9)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(is_same, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(is_same(one[key], two[key]) for key in one)
    return type(one) is type(two) and bool(one == two)


def stored(net: Any) -> dict[str, Any]:
    part = net.part
    return {"last": part.last, "calls": part.calls, "log": list(part.log), **part.table}


def history(net: nn.Module) -> list[Any]:
    """Return what six calls give and leave behind."""
    start_anew()
    found: list[Any] = []
    for call in range(6):
        x = torch.randn(1 + call % 2, 3, 7, 5 + 2 * (call // 3), dtype=torch.float64,
                        generator=torch.Generator().manual_seed(call))  # fmt: skip
        if net.part.last is not None and call == 3:
            net.part.last = None  # of another size
        with torch.no_grad():
            found += [net(x), stored(net), around()]
    return found


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("forward", [*WRITERS, *READERS], ids=lambda f: f.__name__)
def test_what_code_stores_is_what_it_stored(forward: Any, with_example: bool) -> None:
    net = live(Net(forward))
    wanted = history(copy.deepcopy(net))
    start_anew()
    before = stored(net), around()
    folded = refold.reparameterize(net, torch.randn(1, 3, 7, 5).double() if with_example else None)
    assert is_same([*before], [stored(net), around()])  # folding has left nothing behind
    assert all(map(is_same, wanted, history(folded)))
    assert norms(folded) == (0 if forward in WRITERS else 1)
    assert not hasattr(folded, "more")  # the branches beside it always fold, into a new forward


@pytest.mark.parametrize("forward", [counts, appends])
def test_code_around_that_reads_what_is_stored_stays(forward: Any) -> None:
    net = live(Reading(forward))
    wanted = history(copy.deepcopy(net))
    folded = refold.reparameterize(net, torch.randn(1, 3, 7, 5).double())
    assert all(map(is_same, wanted, history(folded)))
    assert norms(folded) == 1
    start_anew()
    reasons = [kept.reason for kept in refold.plan(net).kept]
    assert any("of part, which changes" in reason for reason in reasons)


def test_no_verb_adds_to_the_list_of_a_hook() -> None:
    found: list[Any] = []
    net = live(Net(counts))
    net.get_submodule("part.na").register_forward_hook(lambda module, args, out: found.append(out))
    x = torch.randn(1, 3, 7, 5).double()
    folded = refold.reparameterize(net, x)
    assert refold.verify(net, folded, x)
    refold.remove_residuals(net, x, strict=False)
    assert found == []
    folded(x)
    assert len(found) == 1
