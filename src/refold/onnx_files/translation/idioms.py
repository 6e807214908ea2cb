"""Functions written out in several nodes that runtimes compute as one: they stay as written.

A runtime knows a layer norm by its last product and sum, GELU by its factor of a half. A fold that
moved these into the next layer would leave fewer nodes in the file, and more when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from refold.onnx_files.reading import DEFAULT
from refold.onnx_files.translation.network import Network

_STEPS = 8
_HALF = 0.5


REASON = (
    "runtimes run it and the nodes around it as one function (a layer norm, GELU); folded, they "
    "would not"
)


def idioms(network: Network) -> Iterator[list[Any]]:
    """Yield the nodes of each such function in a file, the last one last."""
    look = _Look(network)
    for node in network.file.nodes:
        if node.domain not in DEFAULT:
            continue
        if node.op_type in ("Div", "Mul"):
            found = look.norm(node)
        elif node.op_type in ("Erf", "Tanh"):
            found = look.gelu(node)
        else:
            continue
        if found:
            yield found


class _Look:
    """Follows values from node to node."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.makers = {name: node for node in network.file.nodes for name in node.output if name}

    def maker(self, name: str, *kinds: str) -> Any:
        """Return the node that makes a value, None where it is of no such kind."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def number(self, name: str) -> float | None:
        """Return a constant that is one number."""
        value = self.network.constant(name)
        return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None

    def other(self, node: Any, value: str) -> str:
        """Return what a sum or product of two reads besides a value."""
        one, two = node.input
        return str(two if one == value else one)

    # layer norm, and its kind without a mean

    def norm(self, node: Any) -> list[Any]:
        """Return the nodes from a normalised value to its gain and shift."""
        if not self._divides_by_spread(node):
            return []
        centred = any(self.maker(name, "Sub") is not None for name in node.input)
        gain = self.network.only_reader(node.output[0])
        if gain is None or gain.op_type != "Mul" or not self._is_row(gain, node.output[0]):
            return []
        if not centred:
            return [node, gain]
        shift = self.network.only_reader(gain.output[0])
        if shift is None or shift.op_type != "Add" or not self._is_row(shift, gain.output[0]):
            return []
        return [node, gain, shift]

    def _is_row(self, node: Any, value: str) -> bool:
        constant = self.network.constant(self.other(node, value))
        return constant is not None and constant.ndim <= 1

    def _divides_by_spread(self, node: Any) -> bool:
        """Say whether a value is divided by the root of its mean square over the last axis."""
        one, two = node.input
        pairs = [(one, two)] if node.op_type == "Div" else [(one, two), (two, one)]
        return any(self._is_spread(value, spread) for value, spread in pairs)

    def _is_spread(self, value: str, spread: str) -> bool:
        inverse = self.maker(spread, "Reciprocal", "Div")
        if inverse is not None:
            spread = inverse.input[-1]
        root = self.maker(spread, "Sqrt", "Pow")
        added = None if root is None else self.maker(root.input[0], "Add")
        means = [] if added is None else [self.maker(n, "ReduceMean") for n in added.input]
        mean = next((m for m in means if m is not None), None)
        if mean is None or not self._over_last(mean):
            return False
        square = self.maker(mean.input[0], "Pow", "Mul")
        return square is not None and self._is_of(square.input[0], value)

    def _is_of(self, name: str, value: str) -> bool:
        """Say whether a value is another, or computed again from the same two."""
        one, two = self.maker(name, "Sub"), self.maker(value, "Sub")
        same = one is not None and two is not None and list(one.input) == list(two.input)
        return name == value or same

    def _over_last(self, mean: Any) -> bool:
        rank = self.network.rank(mean.input[0])
        held = next((list(a.ints) for a in mean.attribute if a.name == "axes"), None)
        if held is None and len(mean.input) > 1:
            value = self.network.constant(mean.input[1])
            held = None if value is None else [int(v) for v in value.reshape(-1).tolist()]
        return held is not None and held in ([-1], [rank - 1 if rank else -1])

    # GELU

    def gelu(self, node: Any) -> list[Any]:
        """Return the nodes of a product with `1 + erf` or `1 + tanh` of the same value."""
        found, value, made = [node], node.output[0], set[str]()
        source = self._source(node)
        while len(found) < _STEPS and len(made) < 3:
            reader = self.network.only_reader(value)
            if reader is None or reader.op_type not in ("Add", "Mul") or len(reader.input) != 2:
                break
            factor = self.other(reader, value)
            kind = self._part(reader, factor, source)
            if kind is None or kind in made:
                break
            half = self.maker(factor, "Mul", "Div") if kind == "value" else None
            if half is not None and factor not in source:
                found.append(half)
                made.add("half")
            found.append(reader)
            made.add(kind)
            value = reader.output[0]
        return found if made == {"one", "value", "half"} else []

    def _part(self, reader: Any, factor: str, source: set[str]) -> str | None:
        """Say what a node behind `erf` does: adds one, halves, or multiplies by the value."""
        number = self.number(factor)
        if reader.op_type == "Add":
            return "one" if number == 1 else None
        if number is not None:
            return "half" if number == _HALF else None
        scaled = self.maker(factor, "Mul", "Div")
        reads = set() if scaled is None else set(scaled.input)
        return "value" if factor in source or source & reads else None

    def _source(self, node: Any) -> set[str]:
        """Return the values from which an argument of `erf` or `tanh` is computed."""
        found, pending = set[str](), [str(node.input[0])]
        for _ in range(_STEPS):
            if not pending:
                break
            maker = self.maker(pending.pop(), "Mul", "Div", "Add", "Pow")
            if maker is not None:
                names = [n for n in maker.input if self.network.is_value(n) and n not in found]
                found.update(names)
                pending += names
        return found
