"""`refold verify`: is an exported file still the same function as the network it came from?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refold.cli import options
from refold.cli.artefact import check_artefact, judge
from refold.cli.console import print_json, say, step
from refold.cli.destination import whole
from refold.cli.onnx_model import check_options, is_onnx, verify_onnx
from refold.cli.subject import prepare

Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="What `convert` wrote, in any of its formats."),
]


def verify(
    network: options.Network,
    out: Out,
    allow_growth: options.AllowGrowth = False,
    as_json: options.Json = False,
) -> int:
    """Compare an exported file with the network it came from."""
    check_artefact(out)
    place = whole(out)
    if is_onnx(network.model):
        check_options(network, locals())
        return verify_onnx(network.model, out, as_json=as_json)
    subject = prepare(network)
    with step(f"compare with {out}"):
        verdict = judge(subject, place, allow_growth=allow_growth)
    if as_json:
        print_json(verdict.to_dict())
    else:
        first, *more = verdict.detail.split("\n")
        say(f"{out}: {first}", *more)
    return 0 if verdict.is_equal else 1
