"""A fold is proved in float64, also where the network names a narrower type."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from refold.equivalence import prove
from refold.errors import InputError, NotEquivalentError
from refold.folding import reparameterize
from refold.reporting import report

EXAMPLE = torch.randn(1, 3, 6, 6)
Cast = Callable[[Tensor], Tensor]


class Casting(nn.Module):
    """Casts its images, as a network does that also takes bytes."""

    def __init__(self, cast: Cast) -> None:
        super().__init__()
        self.conv, self.norm, self.cast = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), cast

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.cast(x) / 2)).relu().mean((2, 3), dtype=torch.float32)


def casting(cast: Cast) -> nn.Module:
    net = Casting(cast).eval()
    nn.init.uniform_(net.norm.running_mean, -1, 1)
    nn.init.uniform_(net.norm.weight, 0.5, 2)
    return net


CASTS: dict[str, Cast] = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "type": lambda x: x.type(torch.FloatTensor),
    "made": lambda x: x.float() * torch.ones(6, dtype=torch.float32),
}


@pytest.mark.parametrize("name", CASTS)
def test_a_network_that_casts_to_float32_is_proved_in_float64(name: str) -> None:
    net = casting(CASTS[name])
    with pytest.raises(InputError):  # what a proof met that did not read float32 as float64
        reparameterize(copy.deepcopy(net).double(), EXAMPLE.double())
    proof = prove(net, reparameterize(net, EXAMPLE), (EXAMPLE,), reparameterize)
    assert proof.exact.max_rel_error < 1e-12


def test_a_wrong_fold_of_such_a_network_is_found() -> None:
    def wrong(net: nn.Module, example: object) -> nn.Module:
        folded = reparameterize(net, example)
        folded.conv.bias.data += 1e-6
        return folded

    net = casting(CASTS["float"])
    with pytest.raises(NotEquivalentError):
        prove(net, reparameterize(net, EXAMPLE), (EXAMPLE,), wrong)


def test_layers_that_take_float32_alone_are_refused() -> None:
    def narrow(x: Tensor) -> Tensor:  # as quantized layers do
        if x.dtype != torch.float32:
            raise TypeError("float32 alone")
        return x

    net = casting(narrow)
    with pytest.raises(InputError, match=r"proved in float64, and the model cannot run .* alone"):
        prove(net, reparameterize(net, EXAMPLE), (EXAMPLE,), reparameterize)


def test_its_page_shows_what_its_layers_give(tmp_path_factory: pytest.TempPathFactory) -> None:
    page = tmp_path_factory.mktemp("page") / "net.html"
    report(casting(CASTS["float"]), page, EXAMPLE)
    plain = casting(lambda x: x)
    report(plain, page.with_name("plain.html"), EXAMPLE)
    shown, wanted = (
        path.read_text().count("<svg") for path in (page, page.with_name("plain.html"))
    )
    assert shown == wanted > 0
