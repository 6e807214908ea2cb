"""From an image to an answer: what a run deployed, on images prepared as its evaluation did."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from refold.errors import InputError, MissingDependencyError, RefoldError, one_line, require_kind
from refold.exporting import (
    FORMATS,
    Sizes,
    described,
    open_file,
    runtime_of,
    size_text,
    takes,
)
from refold.files import require_named
from refold.sources.networks import build
from refold.sources.pruned import is_pruned
from refold.sources.runs import open_run, run_at
from refold.training.data.augment import transform_by
from refold.training.data.image_folders import images_in
from refold.training.data.sources import open_image
from refold.training.loop.learner import outputs
from refold.training.loop.run_folder import CONFIG, SUMMARY
from refold.training.run.restored import network_of

_BATCH = 32
_RUN = [suffix for suffix, kind in FORMATS.items() if not kind.is_weights]
_FILES = tuple(dict.fromkeys((".onnx", ".pt2", ".xml", *_RUN)))  # in the order of preference


@dataclass(frozen=True, eq=False)
class Answer:
    """What a network says of one image.

    Args:
        image: its path.
        output: the network's, without the batch; None where the image cannot be read.
        classes: the names of the classes; empty where there are none.
        task: classify, embed or segment.
        error: why the image cannot be read.
    """

    image: str
    output: Tensor | None
    classes: Sequence[str]
    task: str
    error: str = ""

    def best(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the likeliest classes with their probabilities."""
        if self.output is None:
            return []
        shares = self.output.flatten().softmax(0)
        found = shares.topk(min(count, len(shares)))
        names = list(self.classes) or [str(number) for number in range(len(shares))]
        order = [int(index) for index in found.indices]
        return [(names[index], float(shares[index])) for index in order]

    def mask(self) -> Tensor:
        """Return the number of the class of every pixel, for segmentation."""
        return cast(Tensor, self.output).argmax(0).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class DeployedNetwork:
    """A network ready for use.

    Args:
        call: maps prepared images to outputs.
        about: its task, classes and preprocessing.
    """

    call: Callable[[Tensor], Tensor]
    about: Mapping[str, Any]


def open_network(place: str | Path) -> DeployedNetwork:
    """Open what a run deployed, or a file that was made of it.

    Args:
        place: the folder of a run; or a file of it that can be run, such as `.onnx`, or what
            `convert` or `prune` made of it.

    Raises:
        InputError: when there is none, or the file does not say how images are prepared.
        MissingDependencyError: when the format's library is not installed.
    """
    require_named("place", place)
    path = Path(place)
    if path.suffix == ".safetensors" and path.is_file() and (path.parent / CONFIG).is_file():
        path = path.parent  # weights alone, of a network that the run knows
    if found := run_at(str(path)):
        return _of_run(*found)
    if path.is_dir():
        raise InputError(f"{path} holds no run ({CONFIG} is missing): give what refold train wrote")
    if not path.is_file():
        raise InputError(f"there is no run or file {str(place)!r}: give what refold train wrote")
    pruned = is_pruned(str(path))
    if path.suffix.lower() not in _FILES and not pruned:
        raise InputError(
            f"{path} cannot be run: give a run, or a file that was made of it: {', '.join(_FILES)}"
        )
    about = described(path)
    if "preprocessing" not in about:
        raise InputError(
            f"{path} does not say how images are prepared: give the folder of the run that made "
            "it, or what refold convert makes of that run"
        )
    return DeployedNetwork(_running(build(str(path)).model) if pruned else _caller(path), about)


def _of_run(run: Path, pointer: str | None) -> DeployedNetwork:
    if pointer is not None or not (run / SUMMARY).is_file():
        model, _, about = open_run(run, pointer)
        return DeployedNetwork(_running(model), about)
    try:
        summary = json.loads((run / SUMMARY).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run / SUMMARY} cannot be read ({one_line(error)}): write the run's results again "
            "with refold train --resume"
        ) from error
    if "preprocessing" not in summary:
        raise InputError(
            f"{run} was made by an earlier version, which did not note how images are prepared: "
            "write its results again with refold train --resume"
        )
    for suffix in _FILES:
        file = run / f"deploy{suffix}"
        if file.is_file():
            try:
                return DeployedNetwork(_caller(file), summary)
            except MissingDependencyError:
                continue
    return DeployedNetwork(_running(network_of(run, "best")), summary)


def _running(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: outputs(network(images))[0]


def _caller(path: Path) -> Callable[[Tensor], Tensor]:
    if runtime_of(path) is None:  # a program of torch's
        built = build(str(path))
        sizes = {}
        if not built.sizes and built.example_inputs is not None:
            sizes = {"": tuple(built.example_inputs[0].shape)}
        return _fitted(_running(built.model), path, sizes)
    try:
        call, sizes = open_file(path)
    except RefoldError:
        raise
    except Exception as error:  # of the runtime
        raise InputError(f"{path} cannot be opened, so it is damaged: {one_line(error)}") from error
    return _fitted(lambda images: call(((images,), {}))[0], path, sizes)


def _fitted(
    call: Callable[[Tensor], Tensor], path: Path, sizes: Sizes
) -> Callable[[Tensor], Tensor]:
    """Return what calls a file with as many images at once as it takes.

    Args:
        call: maps as many prepared images to outputs.
        path: the file.
        sizes: what it takes.

    Raises:
        InputError: from the call, when the images are of another size.
    """
    (wanted,) = sizes.values() or [()]

    def run(images: Tensor) -> Tensor:
        shape = tuple(images.shape[1:])
        if wanted and not takes(wanted[1:], shape):
            raise InputError(
                f"{path} takes images of {size_text(wanted[1:])}, and says that they are prepared "
                f"at {size_text(shape)}: convert the run again without --input-size"
            )
        size = wanted[0] if wanted and wanted[0] else len(images)
        return torch.cat([call(_filled(part, size))[: len(part)] for part in images.split(size)])

    return run


def _filled(images: Tensor, size: int) -> Tensor:
    """Return as many images as asked for: the last one stands for those that are missing."""
    return torch.cat([images, images[-1:].expand(size - len(images), *images.shape[1:])])


def predict(place: str | Path, images: str | Path | Iterable[str | Path]) -> Iterator[Answer]:
    """Yield what a deployed network says of images, prepared exactly as its evaluation did.

    Args:
        place: the folder of a run, or a file that it deployed.
        images: files, folders of them, or patterns such as `"photos/*.jpg"`.

    Raises:
        InputError: when the network cannot be opened, or a place holds no image. An image that
            cannot be read is an answer with an error.
    """
    network = open_network(place)
    files = find_images(images)
    for start in range(0, len(files), _BATCH):
        yield from _answers(network, files[start : start + _BATCH])


def _answers(network: DeployedNetwork, files: Sequence[Path]) -> Iterator[Answer]:
    steps = network.about["preprocessing"]
    prepare = transform_by(steps)
    ready: dict[Path, Tensor] = {}
    broken: dict[Path, str] = {}
    for file in files:
        try:
            ready[file] = prepare(open_image(file, steps["colour"]), 0)[0]
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever they like on a broken file
            broken[file] = one_line(error)
    said: dict[Path, Tensor] = {}
    if ready:
        with torch.no_grad():
            found = network.call(torch.stack(list(ready.values()))).float()
        if found.ndim == 4:
            size = tuple(steps["input"][1:])
            found = torch.nn.functional.interpolate(found, size, mode="bilinear")
        said = dict(zip(ready, found, strict=True))
    classes, task = network.about.get("classes", ()), str(network.about["task"])
    for file in files:
        yield Answer(str(file), said.get(file), classes, task, broken.get(file, ""))


def find_images(places: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the image files that places mean, each once, in order.

    Raises:
        InputError: when there is no image at one of them.
    """
    require_kind("images", places, (Iterable, Path), "a place or several")
    found: dict[Path, None] = {}
    for place in [places] if isinstance(places, str | Path) else places:
        require_named("an image", place)
        path = Path(place)
        named = [path]
        if not path.exists():
            named = sorted(Path(name) for name in glob.glob(str(place), recursive=True))  # noqa: PTH207
        files = [file for one in named for file in (images_in(one) if one.is_dir() else [one])]
        if not files:
            raise InputError(f"there is no image at {str(place)!r}: give files or folders")
        found |= dict.fromkeys(files)
    return list(found)
