"""How long the folds of a table take in two revisions, network by network in turn.

Each form has a process of its own that lives through the whole run and folds what it is told. A
network is built anew for every fold, so that nothing about it is known from the last.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from refold.errors import InputError
from zoo.nets import Net, find

FORMS = ("before", "unchecked", "default")


@dataclass(frozen=True)
class Timed:
    """Seconds of one network's folds by form, one for each round; none where a form failed."""

    label: str
    seconds: dict[str, list[float]]

    def median(self, form: str) -> float | None:
        """Return the middle of a form's seconds; None where it failed."""
        return statistics.median(self.seconds[form]) if self.seconds[form] else None


class Worker:
    """A process that folds networks with the refold of one checkout."""

    def __init__(self, form: str, source: Path | None) -> None:
        """Start it; `source` is the checkout whose `src` comes first, None for this one."""
        path = [str(source / "src")] if source else []
        path.append(str(Path(__file__).parents[1]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zoo.clock", form],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )

    def fold(self, label: str) -> float | None:
        """Return the seconds of one fold, None when it failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{label}\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise InputError(f"{label}: the process that folds ended: {self._process.wait()}")
        return None if answer == "failed\n" else float(answer)

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def clock(nets: list[Net], before: Path, rounds: int) -> list[Timed]:
    """Fold every network in every form, in turn; what the first fold imports is not timed.

    Each round another form begins: the first finds the memory that the others have warmed.
    """
    workers = {form: Worker(form, before if form == "before" else None) for form in FORMS}
    found: list[Timed] = []
    try:
        for worker in workers.values():
            worker.fold(nets[0].label)
        for net in nets:
            seconds: dict[str, list[float]] = {form: [] for form in FORMS}
            for at in range(rounds):
                for form in (*FORMS[at % len(FORMS) :], *FORMS[: at % len(FORMS)]):
                    took = workers[form].fold(net.label)
                    seconds[form] += [] if took is None else [took]
            found.append(Timed(net.label, seconds))
            sys.stderr.write(f"{net.label} {[found[-1].median(form) for form in FORMS]}\n")
    finally:
        for worker in workers.values():
            worker.stop()
    return found


def serve(form: str) -> None:
    """Fold each network that a line of standard input names, and answer with the seconds."""
    import gc
    import logging
    import warnings

    import refold
    from zoo.live import enliven

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    options = {"check": False} if form == "unchecked" else {}
    answers, sys.stdout = sys.stdout, sys.stderr  # a library may print
    for line in sys.stdin:
        net = find(line.strip())[0]
        try:
            example = net.example()
            model = enliven(net.build().double(), example)
            gc.collect()  # what the last fold has left is none of this one's
            start = time.perf_counter()
            refold.reparameterize(model, example, **options)
            answer = f"{time.perf_counter() - start}\n"
        except Exception:
            answer = "failed\n"
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
