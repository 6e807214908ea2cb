"""The demo's story: train on handwritten digits, deploy a plain network, get the same answers."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from refold.cli.console import count, say, step, table
from refold.errors import InputError, NotEquivalentError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from refold.training import Trained

EPOCHS = 8  # about half a minute on two cores, and well above 95 %
BATCH = 64  # images at a time when timing
RUNTIME_TITLES = {"eager": "PyTorch", "onnxruntime": "ONNX Runtime"}
ROUNDS = 15  # of interleaved timing: enough for a median, and the demo ends within minutes


def tell_story(folder: Path, seed: int, *, epochs: int = EPOCHS, rounds: int = ROUNDS) -> None:
    """Train on the digits, fold, prove, ask both forms about every test image, export, time.

    Args:
        folder: where the run goes, into one of its own.
        seed: of everything random.
        epochs: passes over the images.
        rounds: of interleaved timing.

    Raises:
        NotEquivalentError: when one answer to one test image differs.
    """
    import refold
    from refold.cli.progress import make_reporter
    from refold.training import Habits

    run = _fresh(folder / "digits")
    say("A RepVGG net learns 4,000 handwritten digits; each block has three branches.")
    with _one_thread():
        trained = refold.train(
            "digits", output=run, changes={"epochs": epochs, "seed": seed}, tracker="none",
            habits=Habits(workers=1), reporter=make_reporter(), cpu=True,
        )  # fmt: skip
    images, labels = _test_images()
    with step("digits: ask the exported file about every test image"):
        right = _compare_answers(trained, images, labels)
    with step("digits: time both forms"), _one_thread():
        timings = refold.benchmark(
            {"train form": _there(trained.model), "deployed": _there(trained.deployed)},
            images[:BATCH], tuple(RUNTIME_TITLES), rounds=rounds,
        )  # fmt: skip
    _say_table(trained, right, len(labels), timings)


@contextmanager
def _one_thread() -> Generator[None]:
    """Compute on one thread: so small a network is slower on several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fresh(run: Path) -> Path:
    """Return the folder of the run, without that of an earlier demo."""
    if (run / "config.yaml").is_file():
        shutil.rmtree(run)
    elif run.exists():
        raise InputError(f"{run} is in the way: remove it, or give another folder with --output")
    return run


def _test_images() -> tuple[Tensor, Tensor]:
    import torch

    from refold.training import load_recipe, open_data
    from refold.training.data.augment import eval_transform

    data = open_data("digits")
    prepare = eval_transform(load_recipe("digits").augment, data)
    pairs = [prepare(*data.val.load(index)) for index in range(len(data.val))]
    return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def _there(network: nn.Module | None) -> nn.Module:
    """Return a network of a run; only a dry run has none."""
    return cast("nn.Module", network)


def _compare_answers(trained: Trained, images: Tensor, labels: Tensor) -> int:
    """Return how many test images are recognised; the form that trained and the file must agree."""
    import torch

    from refold.exporting import onnx_session, run_onnx

    session = onnx_session(trained.folder / "deploy.onnx")
    with torch.no_grad():
        before = _there(trained.model)(images).argmax(1)
    # The file takes any batch; in parts, as one would serve it.
    after = torch.cat([run_onnx(session, (part,))[0].argmax(1) for part in images.split(BATCH)])
    differing = (before != after).nonzero().flatten().tolist()
    if differing:
        raise NotEquivalentError(
            f"test images {differing[:5]}: the network that trained says "
            f"{before[differing[:5]].tolist()}, deploy.onnx {after[differing[:5]].tolist()}"
        )
    return int((after == labels).sum())


def _say_table(trained: Trained, right: int, asked: int, timings: Any) -> None:
    summary = trained.summary
    before, after = summary["train_form"], summary["deployed_form"]
    rows = [
        ["parameters", count(before["parameters"]), count(after["parameters"])],
        ["multiply-adds", count(before["macs"]), count(after["macs"])],
        ["test images recognised", f"{round(before['top1'] * asked)}", f"{right}"],
    ]
    ratios: list[str] = []
    for runtime, title in RUNTIME_TITLES.items():
        cells = [timings.row(runtime, name) for name in ("train form", "deployed")]
        times = [cell.milliseconds for cell in cells]
        rows.append(
            [
                f"{title}, {BATCH} images",
                *("-" if spread is None else f"{spread.median:.2f} ms" for spread in times),
            ]
        )
        if cells[1].speedup is not None:
            ratios.append(f"{cells[1].speedup.median:.2f}x in {title}")
    table("handwritten digits", ["", "train form", "deployed (ONNX)"], rows)
    error = summary["error"]["float64"]
    say(f"same answer to each of the {asked} test images; largest error {error:.1e} in float64")
    if ratios:
        say(f"faster on one thread: {', '.join(ratios)}")
