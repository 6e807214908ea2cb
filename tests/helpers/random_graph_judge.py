"""What a fold of a random graph must keep, and how a network that fails is made small."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from helpers.random_graph_growth import Body, Line, Program
from refold import reparameterize

TOLERANCE = 1e-9
CALLS = 2

Fold = Callable[[nn.Module, Any], nn.Module]


@dataclass(frozen=True)
class Fault:
    """What went wrong: a kind that shrinking keeps, and the details."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


def leaves(value: Any) -> list[Tensor]:
    """Return the tensors of a structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    return [leaf for part in value for leaf in leaves(part)]


@dataclass(frozen=True)
class Answer:
    """What a call returned, what became of its inputs, and which tensors share memory."""

    form: Any
    results: list[Tensor]
    inputs: tuple[Tensor, ...]
    shared: set[tuple[int, int]]


@torch.no_grad()
def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Answer:
    """Call a model on copies of these inputs."""
    own = tuple(x.clone() for x in inputs)
    result = model(*own)
    found = leaves(result)
    homes = [t.untyped_storage().data_ptr() for t in (*found, *own, *model.parameters())]
    ends = len(found) + len(own)
    pairs = combinations(range(len(homes)), 2)
    shared = {(i, min(j, ends)) for i, j in pairs if i < ends and homes[i] == homes[j]}
    return Answer(outline(result), [leaf.clone() for leaf in found], own, shared)


def outline(value: Any) -> Any:
    """Return the structure of a result without its numbers."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {name: outline(part) for name, part in value.items()}
    return type(value), [outline(part) for part in value]


def fault(
    program: Program, fold: Fold = reparameterize, *, examples: tuple[bool, ...] = (True, False)
) -> Fault | None:
    """Fold a network with an example and without; return what goes wrong first, None if nothing.

    The judge is a deep copy of the original, run on inputs of three sizes.
    """
    for example in examples:
        model = program.build()
        oracle, before = copy.deepcopy(model), state(model)
        way = "with example" if example else "without example"
        try:
            folded = fold(model, program.inputs(0) if example else None)
        except Exception as error:  # any crash or refusal of the whole is a finding
            return Fault(f"fold raises {type(error).__name__}", f"{way}: {error}")
        if state(model) != before:
            return Fault("caller changed", way)
        for call in range(3 * CALLS):
            size = call // CALLS
            wrong = compare(oracle, folded, program.inputs(size))
            if wrong:
                return Fault(wrong.kind, f"{way}, size {size}, call {call % CALLS}: {wrong.detail}")
    return None


def compare(oracle: nn.Module, folded: nn.Module, inputs: tuple[Tensor, ...]) -> Fault | None:
    """Run both on the same input; return how they differ."""
    wanted = run(oracle, inputs)
    try:
        got = run(folded, inputs)
    except Exception as error:
        return Fault(f"call raises {type(error).__name__}", str(error))
    if wanted.form != got.form:
        return Fault("other result", f"{got.form}, wanted {wanted.form}")
    if wrong := _errors(wanted.results, got.results):
        return Fault("wrong value", f"errors {wrong} of {len(wanted.results)}")
    if wrong := _errors(wanted.inputs, got.inputs):
        return Fault("input changed otherwise", f"errors {wrong}")
    if more := got.shared - wanted.shared:
        return Fault("shares memory", f"results and inputs {sorted(more)}")
    return None


def _errors(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> dict[int, str]:
    found: dict[int, str] = {}
    for i, (a, b) in enumerate(zip(wanted, got, strict=True)):
        error = float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))
        if not error <= TOLERANCE:
            found[i] = f"{error:.1e}"
    return found


def state(model: nn.Module) -> dict[str, Any]:
    """Return everything of a model that a fold must leave as it was."""
    found: dict[str, Any] = {
        name: (type(module), module.training, sorted(module.__dict__), list(module._modules))
        for name, module in model.named_modules(remove_duplicate=False)
    }
    found |= {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    return found


def shrink(program: Program, kind: str, find: Callable[[Program], Fault | None]) -> Program:
    """Return a smaller network with a fault of the same kind."""
    tried: set[str] = set()
    while True:
        for smaller in _smaller(program):
            source = smaller.source()
            if source in tried:
                continue
            tried.add(source)
            try:
                found = find(smaller)
            except Exception:  # the smaller network does not even run
                continue
            if found is not None and found.kind == kind:
                program = smaller
                break
        else:
            return program


def _smaller(program: Program) -> Iterator[Program]:
    for i, body in enumerate(program.bodies):
        for shorter in _shorter(body):
            bodies = list(program.bodies)
            bodies[i] = shorter.pruned()
            text = "\n".join(line for b in bodies for line in b.setup)
            used = [b for b in bodies if b.name == "Net" or re.search(rf"\b{b.name}\b", text)]
            yield replace(program, bodies=tuple(used))


def _shorter(body: Body) -> Iterator[Body]:
    for i in range(len(body.results)):
        if len(body.results) > 1:
            yield replace(body, results=(*body.results[:i], *body.results[i + 1 :]), form="tuple")
    if body.form != "tuple":
        yield replace(body, form="tuple")
    for i in reversed(range(len(body.lines))):
        line = Line(body.lines[i])
        made = [name for name in sorted(line.stored()) if name not in ("block",)]
        before, after = body.lines[:i], body.lines[i + 1 :]
        split = tuple(line.code.splitlines())
        if len(split) > 1 and not any(part[0] == " " or part[-1] == ":" for part in split):
            yield replace(body, lines=(*before, *split, *after))
        for value in [None, *sorted(line.loaded() - {"self", "torch", "nn", "F", "block"})]:
            names = dict.fromkeys(made, value) if value else {}
            rest = tuple(_renamed(text, names) for text in after)
            results = tuple(_renamed(text, names) for text in body.results)
            yield replace(body, lines=(*before, *rest), results=tuple(dict.fromkeys(results)))


def _renamed(text: str, names: dict[str, str | None]) -> str:
    for old, new in names.items():
        text = re.sub(rf"\b{old}\b", str(new), text)
    return text
