"""Random networks as Python source: any graph of values, written the way people write forwards.

A network is grown line by line. Every line is run at once, for images of three sizes, and is kept
only if it works for all of them and leaves values of moderate size; so each seed is a module that
runs, and that a person can read: `print(grow(7).source())`.
"""

from __future__ import annotations

import ast
import linecache
import math
import re
import zlib
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = {1: ((2, 8), (1, 9), (3, 13)), 2: ((2, 8, 8), (1, 7, 9), (3, 11, 6))}
SMALLEST, LARGEST, MOST_NUMBERS = 1e-2, 1e2, 20_000
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
HEADER = (
    "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\nP = nn.Parameter\n"
)

Env = dict[str, Any]


class UselessLineError(Exception):
    """A line that cannot run, or that makes a value too large, too small or too long."""


@dataclass(frozen=True)
class Line:
    """One statement of a forward, and the statements of `__init__` that it needs."""

    code: str
    setup: tuple[str, ...] = ()
    blocks: tuple[Body, ...] = ()

    def loaded(self) -> set[str]:
        """Return the names that the statement reads."""
        return self._names(ast.Load)

    def stored(self) -> set[str]:
        """Return the names that the statement gives."""
        return self._names(ast.Store)

    def _names(self, context: type[ast.expr_context]) -> set[str]:
        found = (node for node in ast.walk(ast.parse(self.code)) if isinstance(node, ast.Name))
        return {node.id for node in found if isinstance(node.ctx, context)}


@dataclass(frozen=True)
class Body:
    """A module class: its `__init__`, its forward and what it returns."""

    name: str
    signature: str
    setup: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    form: str = "tuple"

    def source(self) -> str:
        """Return the class as Python source."""
        made = "".join(f"        {line}\n" for line in self.setup)
        steps = "".join(f"        {part}\n" for line in self.lines for part in line.splitlines())
        return (
            f"class {self.name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            f"{made}    def forward(self, {self.signature}):\n{steps}"
            f"        return {returned(self.results, self.form)}\n"
        )

    def pruned(self) -> Body:
        """Return the body without what `__init__` makes and nobody uses."""
        setup = list(self.setup)
        while True:
            text = "\n".join(self.lines)
            used = [
                line
                for i, line in enumerate(setup)
                if _attribute(line) in _attributes("\n".join([text, *setup[:i], *setup[i + 1 :]]))
                or not line.startswith("self.")
            ]
            if used == setup:
                return replace(self, setup=tuple(setup))
            setup = used


def _attribute(setup: str) -> str:
    found = re.match(r"self\.(?:register_buffer\(')?(\w+)", setup)
    return "" if found is None else found[1]


def _attributes(text: str) -> set[str]:
    return set(re.findall(r"self\.(\w+)", text))


def returned(results: tuple[str, ...], form: str) -> str:
    """Return the expression of these values in some structure."""
    joined = ", ".join(results)
    if form == "single" or len(results) == 1:
        return results[0]
    if form == "list":
        return f"[{joined}]"
    if form == "dict":
        return "{" + ", ".join(f"'out{i}': {name}" for i, name in enumerate(results)) + "}"
    if form == "nested":
        return "{'first': " + results[0] + f", 'rest': ({', '.join(results[1:])},)" + "}"
    if form == "twice":
        return f"{joined}, {results[0]}"
    return joined


@dataclass(frozen=True)
class Program:
    """A network: nested blocks and the class `Net` that uses them."""

    rank: int
    channels: int
    bodies: tuple[Body, ...]

    def source(self) -> str:
        """Return the whole network as Python source."""
        return HEADER + "".join(f"\n\n{body.source()}" for body in self.bodies)

    def build(self) -> nn.Module:
        """Return the network in eval mode and float64, with live statistics."""
        return live(_namespace(self.source())["Net"]().double().eval())

    def inputs(self, size: int) -> tuple[Tensor, ...]:
        """Return an input of one of the three sizes."""
        batch, *spatial = SIZES[self.rank][size]
        return (noise(f"input {size}", (batch, self.channels, *spatial)),)


def _namespace(source: str) -> Env:
    """Run source as a file of its own, so that tracebacks and `inspect` find its lines."""
    name = f"<random graph {zlib.crc32(source.encode()):08x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    space: Env = {"__name__": "random_graph"}
    exec(compile(source, name, "exec"), space)
    return space


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return normal numbers that depend on a name and a shape only."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def live(model: nn.Module) -> nn.Module:
    """Give every tensor a value that follows from its name: moderate, and scales of both signs."""
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if tensor.is_floating_point():
                tensor.copy_(_value(module, name, noise(f"{path}.{name}", tuple(tensor.shape))))
    return model


def _value(module: nn.Module, name: str, drawn: Tensor) -> Tensor:
    if "var" in name:
        return drawn.abs() * 0.5 + 0.4
    if "mean" in name or "bias" in name or name[0] == "b":
        return drawn * 0.4
    if name[0] == "p" or isinstance(module, NORMS):
        return (drawn.abs() * 0.4 + 0.5) * torch.where(drawn.frac() > 0.3, -1.0, 1.0)
    fan = drawn.numel() / max(1, drawn.shape[0])
    return drawn / math.sqrt(fan)


class Growth:
    """Grows one body: proposes lines, runs them, and keeps those that work.

    Args:
        rng: draws everything.
        rank: spatial axes of the images.
        space: the classes that lines may use.
        starts: the arguments of the forward, for each way in which it is called.
        name: name of the class.
    """

    def __init__(self, rng: Random, rank: int, space: Env, starts: list[Env], name: str) -> None:
        self.rng, self.rank, self.space, self.starts = rng, rank, space, starts
        self.name = name
        self.owner = nn.Module().eval()
        self.setup: list[str] = []
        self.lines: list[str] = []
        self.blocks: list[Body] = []
        self.modules: list[str] = []
        self.factors: list[str] = []
        self.forced = ""
        self.count = 0
        self.envs = [dict(start) for start in starts]

    # -- what lines are made from

    def fresh(self, kind: str) -> str:
        """Return a name that nothing has yet."""
        self.count += 1
        return f"{kind}{self.count}"

    def values(self) -> list[str]:
        """Return the names of the values so far, the oldest first."""
        return [
            name
            for name in self.envs[0]
            if all(isinstance(env.get(name), Tensor) for env in self.envs)
        ]

    def shapes(self, value: str) -> tuple[tuple[int, ...], ...]:
        """Return a value's shape in every run."""
        return tuple(tuple(env[value].shape) for env in self.envs)

    def shape(self, value: str) -> tuple[int, ...]:
        """Return a value's shape in the first run."""
        return self.shapes(value)[0]

    def steady(self, value: str, dim: int) -> bool:
        """Say whether one axis of a value is as long in every run."""
        shapes = self.shapes(value)
        return len(shapes[0]) > abs(dim) and len({shape[dim] for shape in shapes}) == 1

    def pick(self, *fits: Any) -> str:
        """Draw a value for which all of these hold; recent values and one favourite come first."""
        known = [value for value in self.values() if all(fit(value) for fit in fits)]
        if not known:
            raise UselessLineError
        if self.forced in known:
            return self.forced
        draw = self.rng.random()
        if draw < 0.4:
            return known[-1]
        return known[len(known) // 2] if draw < 0.6 else self.rng.choice(known)

    def like(self, value: str) -> str:
        """Draw a value of the same shape, another one where there is one."""
        others = [v for v in self.values() if self.shapes(v) == self.shapes(value) and v != value]
        return self.rng.choice(others or [value])

    def maps(self, value: str) -> bool:
        """Say whether a value is a batch of maps with a known number of channels."""
        return len(self.shape(value)) == self.rank + 2 and self.steady(value, 1)

    def channelled(self, value: str) -> bool:
        """Say whether a value has channels on its second axis."""
        return self.steady(value, 1)

    def standing(self, expressions: list[str]) -> list[str]:
        """Return the expressions whose attribute an accepted line has made."""
        made = {_attribute(line) for line in self.setup}
        return [text for text in expressions if _attributes(text) <= made]

    def coin(self, chance: float = 0.5) -> bool:
        """Return True as often as asked."""
        return self.rng.random() < chance

    # -- growing

    def grow(self, kinds: Any, count: int) -> None:
        """Add lines until there are `count`, or nothing fits any more."""
        for _ in range(12 * count):
            if len(self.lines) >= count:
                return
            try:
                self.add(self.rng.choice(kinds)(self))
            except UselessLineError:
                continue

    def add(self, line: Line) -> None:
        """Append a line; raise `UselessLineError` and stay as before when it does not work."""
        lines = [*self.lines, line.code]
        try:
            for setup in line.setup:
                exec(setup, {**self.space, "self": self.owner})
            if line.setup:
                live(self.owner.double().eval())
            envs = [self._run(lines, start) for start in self.starts]
        except Exception as error:
            raise UselessLineError from error
        self.envs, self.lines = envs, lines
        self.setup.extend(line.setup)
        self.blocks.extend(line.blocks)

    @torch.no_grad()
    def _run(self, lines: list[str], start: Env) -> Env:
        env: Env = {**self.space, "self": self.owner}
        env.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in start.items()})
        exec("\n".join(lines), env)
        known = {name: value for name, value in env.items() if re.fullmatch(r"v\d+|x|skip", name)}
        for value in known.values():
            if isinstance(value, Tensor):
                most = value.abs().max().item() if value.numel() else 0.0
                if not SMALLEST < most < LARGEST or value.numel() > MOST_NUMBERS:
                    raise UselessLineError
        return known

    def body(self, signature: str, results: tuple[str, ...], form: str) -> Body:
        """Return the class that was grown."""
        return Body(
            self.name, signature, tuple(self.setup), tuple(self.lines), results, form
        ).pruned()


def space() -> Env:
    """Return the names that every line may use."""
    return {"torch": torch, "nn": nn, "F": F, "P": nn.Parameter}


def grow(seed: int, longest: int = 12) -> Program:
    """Return the network of a seed, with at most so many lines in its forward."""
    from helpers.random_graph_lines import KINDS

    rng = Random(seed)
    while True:
        rank = rng.choice([1, 2, 2, 2])
        channels = rng.choice([2, 3, 4, 6])
        drawn = Program(rank, channels, ())
        starts: list[Env] = [{"x": drawn.inputs(size)[0]} for size in range(3)]
        growth = Growth(rng, rank, space(), starts, "Net")
        growth.grow(KINDS, rng.randint(4, longest))
        if (body := _finished(growth)).lines and body.setup:
            return replace(drawn, bodies=(*growth.blocks, body))


def _finished(growth: Growth) -> Body:
    """Return the body with most of the values that nobody reads as results, in some structure."""
    rng = growth.rng
    read = set[str]().union(*(Line(line).loaded() for line in growth.lines))
    values = growth.values()[1:] or ["x"]
    ends = [value for value in values if value not in read]
    results = [value for value in ends if rng.random() < 0.85]
    results += [value for value in values if value in read and rng.random() < 0.15]
    rng.shuffle(results)
    results = results or [values[-1]]
    form = rng.choice(["tuple", "tuple", "list", "dict", "nested", "twice"])
    return growth.body("x", tuple(results[:6]), form)
