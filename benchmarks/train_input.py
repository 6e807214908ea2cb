"""How many images a second reach the network in training: refold, timm's loader, a plain loop.

    python benchmarks/train_input.py [--images 512] [--workers 1] [--size 224] [--batch 32]
                                     [--rounds 5] [--step]

One folder of JPEGs of about 500 x 375 pixels, made of scikit-image's photographs, read by each in
turn. All crop a part of random size, resize it bilinearly, flip half of them and normalise; what
they give is on the device, as numbers. The first batch is not counted: it starts the workers.
`--step` trains ResNet-18 on every batch as well. "Input" is bytes of a batch on their way to the
device. The plain loop is torchvision's ImageFolder and transforms in torch's DataLoader.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from refold.training import open_data
from refold.training.data.augment import numbers, train_transform
from refold.training.data.loader import Samples, TrainOrder, loader
from refold.training.loop.feed import Feed
from refold.training.recipes.recipe import Augment

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Epoch = Iterator[tuple[Tensor, Tensor]]
"""Images and labels of each batch, on the device."""


def main() -> None:
    """Compare the three."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="also train ResNet-18 on every batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.images)
        forms = {
            "plain loop": plain(Path(folder), options, device),
            "timm": timms(Path(folder), options, device),
            "refold": refolds(Path(folder), options, device),
        }
        take = step_of(device) if options.step else None
        found: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(options.rounds):
            order = list(forms)
            for name in (*order[turn % 3 :], *order[: turn % 3]):
                found[name].append(speed(forms[name](), take))
    Console().print(table(found, options, device))


def write(folder: Path, count: int) -> None:
    """Write a folder of JPEGs, four classes of them."""
    from PIL import Image
    from skimage import data

    photographs = [Image.fromarray(getattr(data, name)()) for name in _PHOTOGRAPHS]
    draw = random.Random(0)
    for part, images in (("train", count), ("val", 8)):
        for at in range(images):
            place = folder / part / _PHOTOGRAPHS[at % 4]
            place.mkdir(parents=True, exist_ok=True)
            size = 500 + draw.randint(-60, 60), 375 + draw.randint(-60, 60)
            photographs[at % 4].resize(size).save(place / f"{at}.jpg", quality=90)


def plain(folder: Path, options: Any, device: torch.device) -> Callable[[], Epoch]:
    """Return what reads an epoch as torchvision's examples do."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(options.size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(*_IMAGENET),
    ]
    batches: Iterable[Any] = DataLoader(
        ImageFolder(folder / "train", transforms.Compose(steps)),
        options.batch,
        shuffle=True,
        num_workers=options.workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=options.workers > 0,
    )

    def epoch() -> Epoch:
        for images, labels in batches:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return epoch


def timms(folder: Path, options: Any, device: torch.device) -> Callable[[], Epoch]:
    """Return what reads an epoch with timm's loader, bytes sent ahead."""
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    batches: Any = create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True),
        (3, options.size, options.size),
        options.batch,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
        device=device,
    )
    return lambda: iter(batches)


def refolds(folder: Path, options: Any, device: torch.device) -> Callable[[], Epoch]:
    """Return what reads an epoch as `refold train` does."""
    data, augment = open_data(folder), Augment(size=options.size)
    order = TrainOrder(len(data.train), options.batch, seed=0)
    samples = Samples(data.train, train_transform(augment, data), seed=0)
    batches = loader(samples, order, options.workers)
    feed = Feed(batches, numbers(augment, data), device)

    def epoch() -> Epoch:
        order.at(order.epoch + 1)
        for batch in feed:
            yield batch.images, batch.targets

    return epoch


def step_of(device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """Return a step of ResNet-18; nothing is read back from the device."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=4).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)

    def take(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    return take


def speed(epoch: Epoch, take: Callable[[Tensor, Tensor], None] | None) -> float:
    """Return images a second of an epoch behind its first batch."""
    count, start = 0, 0.0
    for images, labels in epoch:
        if take is not None:
            take(images, labels)
        if start:
            count += len(images)
        else:
            start = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def table(found: dict[str, list[float]], options: Any, device: torch.device) -> Table:
    """Return the speeds, with the smallest and the largest, and each beside timm's by round."""
    what = "read and train" if options.step else "read"
    title = (
        f"{what} at {options.size} px, batch {options.batch}, {options.workers} workers, on "
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else platform.processor()}"
    )
    made = Table("", "images/s", "beside timm", "input", title=title)
    bytes_of = options.batch * 3 * options.size**2
    for name, speeds in found.items():
        beside = [mine / other for mine, other in zip(speeds, found["timm"], strict=True)]
        sent = bytes_of * (4 if name == "plain loop" else 1)
        made.add_row(name, _spread(speeds, ".0f"), _spread(beside, ".2f"), f"{sent / 1e6:.1f} MB")
    return made


def _spread(values: list[float], form: str) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({least:{form}}-{most:{form}})"


if __name__ == "__main__":
    main()
