"""The HTML page of a report, written by the command of that name and by `--report` of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refold.cli.console import note, step
from refold.cli.destination import check_destination
from refold.cli.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from refold.account import Account
    from refold.equivalence import Proof

SUFFIXES = (".html", ".htm")


def check_page(path: Path | None) -> Path | None:
    """Refuse a page that could not be written; return its whole path, None where none is wanted.

    Raises:
        InputError: if its suffix is not that of a page, or its folder cannot be written to.
    """
    return None if path is None else check_destination(path, SUFFIXES)


def write_page(
    place: Path | None,
    subject: Subject,
    account: Account,
    proof: Proof,
    *,
    fold: Callable[[nn.Module, Any], nn.Module],
    verb: str = "folded",
    measure: bool = False,
) -> None:
    """Write the page of what a verb did; nothing where none is wanted.

    Args:
        place: the whole path of the page, or None.
        subject: the network before.
        account: of the verb.
        proof: that both are the same function.
        fold: does the same to another network, given its inputs.
        verb: what was done.
        measure: also time every step.

    Raises:
        InputError: when it cannot be written.
    """
    if place is None:
        return
    from refold.reporting import Comparison, write_report

    comparison = Comparison(
        name=subject.name,
        before=subject.model,
        after=account.model,
        inputs=subject.example_inputs,
        account=account,
        fold=fold,
        proof=proof,
        verb=verb,
        measure=measure,
    )
    with step(f"report {place.name}"):
        write_report(comparison, place)
    note(f"wrote {place} ({place.stat().st_size / 2**10:.0f} KiB): open it in a browser")
