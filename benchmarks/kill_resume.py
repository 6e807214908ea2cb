"""Training runs that are killed at random moments and go on: do they end with the same bits?

    python benchmarks/kill_resume.py [--count 50] [--workers 0] [--seed 0]

A tiny network learns sixteen pictures by `refold train`, undisturbed once. Then, for each signal,
`--count` runs are started by the same command and killed at a random moment between the start of
the training and the end of the process: in the middle of steps, of judgements, of checkpoints that
are written, of folding. Each goes on by the same command with `--resume`. The table counts the runs
that were hit before they were over, those that then ended, and those whose last checkpoint, whose
measurements and whose summary are those of the undisturbed run, bit by bit.

The processes are forked from one that has imported torch and computed nothing; a signal reaches
them as any other process. The ONNX file is left out, since writing it takes longer than the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL)
NET = """
from torch import nn

def build(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
"""


class Nursery:
    """A process that forks training processes, so that torch is imported once.

    Args:
        folder: where runs go.
        epochs: of each run.
        workers: of its loaders.
    """

    def __init__(self, folder: Path, epochs: int, workers: int = 0) -> None:
        self.folder, self.epochs, self.workers = folder, epochs, workers
        (folder / "net.py").write_text(NET)
        _pictures(folder / "data")
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--nursery"], text=True, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def train(
        self, run: str, *, resume: bool = False, number: int = 0, delay: float = 0.0
    ) -> tuple[int, float, str]:
        """Train in a process of its own.

        Args:
            run: name of the run's folder.
            resume: whether to say `--resume`.
            number: of a signal that the process is to get; 0 for none.
            delay: seconds after the start of the training to send it at.

        Returns:
            The exit status, negative for the signal that ended it; its seconds from the start of
            its training on; what it said.
        """
        words = [
            "train", "--data", "data", "--model", "net.py:build", "-o", run, "--epochs",
            str(self.epochs), "--batch-size", "4", "--image-size", "12", "--workers",
            str(self.workers), "--cpu", "--tracker", "none", "--save-minutes", "0.0003",
            "--set", "ema=0.9", "--set", "deploy.files=[safetensors]",
        ]  # fmt: skip
        order = {"words": [*words, "--resume"] if resume else words}
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({**order, "number": number, "delay": delay}) + "\n")
        stdin.flush()
        status, seconds, said = json.loads(stdout.readline())
        return status, seconds, said

    def result(self, run: str) -> list[Any]:
        """Return all that a run ends with but its speed: checkpoint, measurements, summary."""
        folder = self.folder / run
        name = (folder / "checkpoints" / "last").read_text().strip()
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        judged = [{**row, "images_per_second": 0.0} for row in rows]
        summary = json.loads((folder / "summary.json").read_text())
        with safetensors.safe_open(folder / "checkpoints" / name, "np") as file:
            notes = sorted((file.metadata() or {}).items())
            tensors = [(key, file.get_tensor(key).tobytes()) for key in sorted(file.keys())]
        return [tensors, notes, judged, summary]


def allowed(number: int, status: int) -> bool:
    """Say whether a process that got a signal may end with a status.

    It was over before; or it saved and said so; or the signal came when there was nothing to save
    and ended it at once.
    """
    return status in (0, 128 + number, -number)


def _pictures(data: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for name in ("ant", "bee"):
            (data / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 255, (12, 12, 3)).astype("uint8")
                Image.fromarray(pixels).save(data / part / name / f"{index}.png")


# the nursery


def _nurse() -> None:
    """Fork a process for each order that comes in; answer how it ended."""
    import importlib

    import torch

    for name in (
        "accelerate", "timm.optim", "timm.utils.model_ema",
        "torchvision.transforms.v2", "refold.cli.app",
        "refold.training.run.setup", "refold.training.run.finish",
    ):  # fmt: skip
        importlib.import_module(name)
    torch.set_num_threads(1)
    from refold.training import load_recipe

    load_recipe("folder")
    for line in sys.stdin:
        order = json.loads(line)
        status, seconds, said = _raised(order)
        sys.stdout.write(json.dumps([status, seconds, said]) + "\n")
        sys.stdout.flush()


def _raised(order: dict[str, Any]) -> tuple[int, float, str]:
    begun, begins = os.pipe()
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            os.close(begun)
            _live(order["words"], begins, said.fileno())
        os.close(begins)
        os.read(begun, 1)  # or the end of the process, should it never train
        os.close(begun)
        start = time.monotonic()
        if order["number"]:
            time.sleep(order["delay"])
            os.kill(pid, order["number"])
        _, status = os.waitpid(pid, 0)
        seconds = time.monotonic() - start
        said.seek(0)
        return os.waitstatus_to_exitcode(status), seconds, said.read().decode()


def _live(words: list[str], begins: int, said: int) -> None:
    """Be a training process that says when its training begins."""
    code = 70
    try:
        for number in SIGNALS[:2]:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream in (1, 2):
            os.dup2(said, stream)
        from refold.cli.app import main
        from refold.training.loop.engine import Engine

        run = Engine.run

        def told(engine: Engine) -> None:
            os.write(begins, b".")
            os.close(begins)
            run(engine)

        Engine.run = told
        code = main(words)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# the benchmark


def _trial(nursery: Nursery, run: str, number: int, delay: float, whole: Any) -> tuple[bool, ...]:
    """Kill a run and let it go on; return whether it was hit, whether it ended, whether equal."""
    status, _, said = nursery.train(run, number=number, delay=delay)
    if not allowed(number, status):
        print(f"{run}: ended with {status} after signal {number}:\n{said}")
        return True, False, False
    again, _, told = nursery.train(run, resume=True)
    if again:
        print(f"{run}: ended with {again} after --resume:\n{told}")
        return True, False, False
    return status != 0, True, nursery.result(run) == whole


def main() -> int:
    """Kill runs and print the table; 1 when one of them did not come back as it was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50, help="kills of each signal")
    parser.add_argument("--workers", type=int, default=0, help="of the loaders")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nursery:
        _nurse()
        return 0
    moments = random.Random(options.seed)
    good, rows = True, list[str]()
    with (
        tempfile.TemporaryDirectory() as folder,
        Nursery(Path(folder), 15, options.workers) as nursery,
    ):
        status, seconds, said = nursery.train("whole")
        assert status == 0, said
        whole = nursery.result("whole")
        for number in SIGNALS:
            trials: list[tuple[bool, ...]] = []
            for index in range(options.count):
                delay = moments.uniform(0, seconds)
                run = f"{number.name.lower()}-{index}"
                trials.append(_trial(nursery, run, number, delay, whole))
                print(f"\r{number.name}: {index + 1} of {options.count}", end="", flush=True)
            print()
            hit, resumed, equal = (sum(column) for column in zip(*trials, strict=True))
            good &= resumed == equal == options.count
            rows.append(f"| {number.name} | {options.count} | {hit} | {resumed} | {equal} |")
    print("| signal | kills | before the end | resumed | bits equal |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
