"""Which prefix of a file's names to leave out: wrappers put their own name in front."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from refold.checkpoint.read import COUNTERS

_DEEPEST = 4  # modules that hold the network as a whole


class Reading(NamedTuple):
    """One way to read the names of a file.

    Args:
        names: from names without wrapper prefixes to those of the file.
        stripped: the prefixes.
    """

    names: dict[str, str]
    stripped: tuple[str, ...] = ()

    @property
    def is_averaged(self) -> bool:
        """Whether the names say that these are averages over the training."""
        return any("ema" in prefix for prefix in self.stripped)


def readings(names: dict[str, str], wanted: Collection[str]) -> Iterator[list[Reading]]:
    """Yield ways to read a file's names, the likeliest first; those in one list are equally good.

    First as they are, then without what all begin with, then what of them begins alike and has
    all the names of the model. A number is the place in a sequence and no wrapper's name.

    Examples:
        >>> names = {name: name for name in ("net.a.weight", "net.a.bias", "loss.weight")}
        >>> tiers = readings(names, {"a.weight", "a.bias"})
        >>> [reading.stripped for tier in tiers for reading in tier]
        [(), ('net.',)]
    """
    whole = Reading(names)
    yield [whole]
    while (reading := _without_common(whole)) is not None:
        yield [reading]
        whole = reading
    yield [part for part in _parts(names) if part.names.keys() >= set(wanted)]


def _without_common(reading: Reading) -> Reading | None:
    names = {short: full for short, full in reading.names.items() if short not in COUNTERS}
    heads = {short.partition(".")[0] for short in names}
    if len(heads) != 1 or len(reading.stripped) == _DEEPEST or any("." not in s for s in names):
        return None
    head = f"{heads.pop()}."
    if head[:-1].isdigit():
        return None
    inner = {short[len(head) :]: full for short, full in names.items()}
    return Reading(inner, (*reading.stripped, head))


def _parts(names: dict[str, str]) -> list[Reading]:
    found: dict[str, dict[str, str]] = {}
    for short, full in names.items():
        heads = short.split(".")[:-1][:_DEEPEST]
        for count in range(1, len(heads) + 1):
            if heads[count - 1].isdigit():
                break
            prefix = ".".join(heads[:count]) + "."
            found.setdefault(prefix, {})[short[len(prefix) :]] = full
    return [Reading(inner, (prefix,)) for prefix, inner in found.items() if len(inner) < len(names)]
