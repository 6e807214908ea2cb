"""An argument of another type is one sentence of ours, which names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import refold
from refold.errors import InputError
from refold.training import predict

untyped: Any = refold  # what a type checker would have said
X = torch.zeros(1, 3, 8, 8)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: untyped.expand(net(), "acb", where=5), "where must be a function, a pattern"),
        (lambda: untyped.prune(net(), X, ratio="0.5"), "ratio must be a number, got '0.5'"),
        (lambda: untyped.prune(net(), X, ratio=True), "ratio must be a number, got True"),
        (lambda: untyped.prune(net(), X, macs=[1]), "macs must be a number, got list"),
        (
            lambda: untyped.prune(net(), X, ratio=0.5, importance="l1", floor="a"),
            "floor must be a number of chan",
        ),
        (lambda: untyped.create_model(None), "name must be one of list_models"),
        (
            lambda: untyped.create_model("repvgg_a0", num_classes="10"),
            "num_classes must be a whole",
        ),
        (lambda: untyped.list_models(3), "pattern must be a text"),
        (
            lambda: untyped.load_checkpoint(None, "a.pth"),
            "model must be a torch.nn.Module, got None",
        ),
        (lambda: untyped.load_checkpoint(net(), "a.pth", key=3), "key must be the name"),
        (
            lambda: untyped.train(3, output="r"),
            "recipe must be a name, a path or a Recipe, got int",
        ),
        (lambda: untyped.train(output="r", changes=["a"]), "changes must be a mapping"),
        (lambda: untyped.train(output="r", habits=3), "habits must be refold.training.Habits"),
        (lambda: untyped.train(output="r", penalties=3), "penalties must be several functions"),
        (lambda: untyped.study("branches", "s", seeds=3), "seeds must be several"),
        (lambda: list(predict(None, ["a"])), "place must be a path"),  # type: ignore[arg-type]
    ],
)
def test_it_is_named(
    call: Callable[[], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        call()
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())
