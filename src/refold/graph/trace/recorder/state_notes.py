"""What a run leaves behind for the next one: in attributes, and in things around the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from refold.graph.copies.held import same_value
from refold.graph.copies.modules import submodule
from refold.graph.trace.code.kept import is_read_by, names_it
from refold.graph.trace.frames import Frame
from refold.graph.trace.recorder.notebook import Conditions
from refold.graph.trace.recorder.torch_calls import TorchCalls
from refold.graph.trace.state import Attributes, Changes
from refold.graph.trace.writes import is_stored_value


class StateNotes(TorchCalls):
    """Notes which frames write what stays, and which read it.

    A frame that only writes keeps its own code, and what it stores is a result like others: its
    layers may still fold. One that reads what an earlier call has left is no frame, its code may
    do anything next time.
    """

    def __init__(self, root: nn.Module, changes: Changes, given: Conditions) -> None:
        super().__init__(root, changes, given)
        self.opaque: dict[str, str] = {}
        self.before: Attributes | None = None
        self.was_set: set[tuple[int, str]] = set()
        self.keeps = False  # whether anything stays for the next call
        self.is_as_before = False  # whether the run has come to its end, and changed no attribute
        self._paths: dict[int, str] = {}
        self._noted: set[tuple[int, str]] = set()
        self._sets: list[str] = []
        self._set_here: list[tuple[str, str]] = []
        self._calls: dict[str, list[Frame]] = {}

    def note_assignment(self, module: nn.Module, name: str, value: Any) -> bool:
        """Note an assignment to an attribute; True where it assigns what is there already."""
        if id(module) not in self._paths:
            return False
        frame = self.stack[-1]
        old = {**module.__dict__, **module._parameters, **module._buffers}.get(name)
        is_stored = isinstance(old, Tensor)
        marked = self._mark(value)
        if is_stored and marked is not None and is_stored_value(marked, old):
            return True  # `self.n += 1` has changed the tensor itself
        if same_value(old, value) and (name in module.__dict__ or is_stored):
            return False
        path = self._paths[id(module)]
        self.was_set.add((id(module), name))
        if self._paused:
            below = self._sets[-1] if self._sets else frame.path
            if path and not f"{path}.".startswith(f"{below}."):
                self.changes.assigned.setdefault(id(module), f"the code of {below} sets its {name}")
            return False
        if module is not frame.module:
            where = f"the code of {frame.path}" if frame.path else "code outside it"
            self.changes.assigned.setdefault(id(module), f"{where} sets its {name}")
        if module is not frame.module or name in {**module._parameters, **module._buffers}:
            self._leave(frame, _sets_what(path, name))
        self._set_here.append((path, name))
        return False

    def note_state(self, frames: Iterable[Frame]) -> None:
        """Note, at the end of a run, what it has left behind.

        Args:
            frames: all frames of the run.
        """
        for frame in frames:
            self._calls.setdefault(frame.path, []).append(frame)
        for path, name in self._set_here:
            self._keep(path, name, _sets_what(path, name))
        inside = {id(m) for p in self.opaque for m in submodule(self.root, p).modules()}
        changed = self.before.changed() if self.before is not None else None
        self.is_as_before = changed == []
        for module, name in changed or ():
            self.keeps = True
            self._noted.add((id(module), name))
            path = self._paths[id(module)]
            if id(module) in inside:
                self._read_above(path, name)
            elif (id(module), name) not in self.was_set:
                self._changed_unseen(module, path, name)
        self._note_around(inside)

    def _changed_unseen(self, module: nn.Module, path: str, name: str) -> None:
        """Note an attribute whose content has changed: a list is longer."""
        reason = f"its code changes {name} of a {type(module).__name__} for the next call"
        if path in self._calls and names_it(type(module), name):
            self._keep(path, name, reason)
        else:
            self.changes.assigned.setdefault(id(module), reason)
            self._must_stay(path if path in self._calls else "", name, reason)

    def note_altered(self, path: str, name: str) -> None:
        """Note, after `note_state`, an attribute that holds an object which has changed within."""
        module = submodule(self.root, path)
        if (id(module), name) not in self.was_set | self._noted:
            self.keeps, self.is_as_before = True, False
            self._changed_unseen(module, path, name)

    def _note_around(self, inside: set[int]) -> None:
        around = self.changes.around
        for name, value in around.changed() if around is not None else ():
            reason = f"its code changes {name}, which is no part of the model, for the next call"
            users = [p for p, each in self._calls.items() if names_it(type(each[0].module), name)]
            for path in users:
                self._keep(path, name, reason, value, is_global=True)
            hidden = (m for m in self.root.modules() if id(m) in inside)
            if not users and not any(names_it(type(m), name) for m in hidden):
                self._must_stay("", name, reason)

    def _keep(
        self, path: str, name: str, reason: str, value: Any = None, *, is_global: bool = False
    ) -> None:
        """Let a module keep its code, and what it stores; or be no frame, where it reads that."""
        calls = self._calls[path]
        module = calls[0].module
        if is_read_by(type(module), name, is_global=is_global):
            self._must_stay(path, name, reason)
            return
        self.keeps = True
        for frame in calls:
            self.bakes.setdefault(frame, reason)
        self.stored += self.held_in(value if is_global else getattr(module, name, None), 1)
        self._read_above(path, name)

    def _must_stay(self, path: str, name: str, reason: str) -> None:
        self.keeps = True
        self._leave(self._calls[path][0], reason)
        self._read_above(path, name)

    def _read_above(self, path: str, name: str) -> None:
        """Follow no module that changes below, and whose code may read what changes there."""
        while path:
            below, path = path, path.rpartition(".")[0]
            for frame in self._calls.get(path, ())[:1]:
                if is_read_by(type(frame.module), name):
                    self._leave(frame, f"its code reads {name} of {below}, which changes")


def _sets_what(path: str, name: str) -> str:
    whole = f"{path}.{name}" if path else name
    return f"its code sets {whole}, which stays for the next call"
