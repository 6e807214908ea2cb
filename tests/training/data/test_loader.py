"""Order and augmentation follow from seed, epoch and image; what cannot be read is replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from refold.errors import InputError
from refold.training import open_data
from refold.training.data.augment import (
    Numbers,
    eval_bytes,
    eval_transform,
    numbers,
    train_transform,
)
from refold.training.data.loader import EvalOrder, Samples, TrainOrder, loader
from refold.training.recipes.recipe import Augment
from training.pictures import folders, masks

HARD = Augment(size=8, auto="trivial", jitter=0.3, erase=0.5)


def batches(data, workers: int, epoch: int, start: int = 0, augment: Augment = HARD):
    order = TrainOrder(len(data.train), 5, seed=3)
    order.at(epoch, start)
    samples = Samples(data.train, train_transform(augment, data), seed=3)
    return list(loader(samples, order, workers))


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    data = open_data(folders(tmp_path, train=10))
    alone = batches(data, 0, epoch=1)
    torch.manual_seed(99)  # what was drawn before does not matter
    assert same(alone, batches(data, 2, epoch=1))
    assert same(alone[2:], batches(data, 1, epoch=1, start=2))
    assert not same(alone, batches(data, 0, epoch=2))


def test_loading_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    data = open_data(folders(tmp_path))
    before = torch.get_rng_state()
    batches(data, 0, epoch=0)
    assert torch.equal(before, torch.get_rng_state())


def test_processes_cut_the_same_batches() -> None:
    def keys(**split):
        order = TrainOrder(23, 8, seed=1, **split)
        order.at(4)
        return list(order)

    whole = keys()
    assert [len(batch) for batch in whole] == [8, 8]  # 7 images fill no batch
    halves = [keys(parts=2, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    quarters = [keys(parts=4, rank=rank, world=2) for rank in (0, 1)]
    assert sorted(map(tuple, quarters[0] + quarters[1])) == sorted(
        tuple(batch[at : at + 2]) for batch in whole for at in (0, 2, 4, 6)
    )


@pytest.mark.parametrize("world", [1, 3])
def test_every_image_is_judged_once(world: int) -> None:
    orders = [EvalOrder(11, 2, rank, world) for rank in range(world)]
    assert sorted(index for order in orders for batch in order for _, index in batch) == [
        *range(11)
    ]
    assert [len(order) for order in orders] == [len(list(order)) for order in orders]


@pytest.mark.slow
def test_unreadable_images_are_replaced_and_named(tmp_path: Path) -> None:
    data = open_data(folders(tmp_path, train=10))
    broken = [data.train.files[3], data.train.files[4]]
    broken[0].write_bytes(broken[0].read_bytes()[:60])
    broken[1].write_text("no image")
    plain = Augment(size=12, crop="none", flip=False)
    found = batches(data, 0, 0, augment=plain)
    assert {index for batch in found for index in batch.unreadable} == {3, 4}
    assert same(found, batches(data, 2, 0, augment=plain))
    samples = Samples(data.train, eval_transform(plain, data), 0)
    assert torch.equal(samples[0, 3].image, samples[0, 5].image)
    assert [samples[0, index].valid for index in (2, 3, 5)] == [True, False, True]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    data = open_data(folders(tmp_path, train=3))
    for file in data.train.files:
        file.write_text("junk")
    with pytest.raises(InputError, match=r"no image can be read, .*/train/.*.png"):
        batches(data, 0, 0)


def test_masks_move_with_their_images(tmp_path: Path) -> None:
    data = open_data(masks(tmp_path), "segment")
    augment = Augment(size=16, crop="pad", pad=3, shift=0.1, rotate=5)
    samples = Samples(data.train, train_transform(augment, data), 0)
    for epoch in range(8):
        image, mask, *_ = samples[epoch, 1]
        bright = image.float().mean(0) > 125
        counts = mask != 255
        assert mask.shape == (16, 16)
        assert not counts.all()  # the border, and what was moved in
        agreement = (bright == (mask == 1))[counts].float().mean()
        assert agreement > 0.97


def old_style(augment: Augment, data):
    """Return the transform of a run when images travelled as numbers: torchvision's own steps."""
    steps = [v2.ToImage(), v2.RandomResizedCrop(augment.size, antialias=True)]
    steps += [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    made = v2.Compose([*steps, v2.RandomErasing(augment.erase)])
    return lambda image, target: (made(image).as_subclass(torch.Tensor), target)


@pytest.mark.parametrize("erase", [0.0, 0.7])
def test_bytes_travel_and_the_numbers_are_the_same(tmp_path: Path, erase: float) -> None:
    data, augment = open_data(folders(tmp_path, train=6)), Augment(size=9, erase=erase)
    feed = numbers(augment, data)
    samples = Samples(data.train, train_transform(augment, data), 5)
    wanted = Samples(data.train, old_style(augment, data), 5)
    for at in range(4):
        assert (samples[1, at].image.dtype == torch.uint8) is not bool(erase)
        assert torch.equal(feed(samples[1, at].image), wanted[1, at].image)


def test_a_part_is_cut_out_of_image_and_mask_alike(tmp_path: Path) -> None:
    data, augment = open_data(masks(tmp_path), "segment"), Augment(size=11, flip=False)
    crop = v2.RandomResizedCrop(11, scale=augment.scale, antialias=True)
    transform = train_transform(augment, data)
    for at in range(4):
        image, mask = data.train.load(at)
        torch.manual_seed(at)
        whole = crop(v2.ToImage()(image), mask)  # torchvision's own, of the whole picture
        torch.manual_seed(at)
        mine = transform(image, mask)
        assert torch.equal(mine[0], whole[0].as_subclass(torch.Tensor))
        assert torch.equal(mine[1], whole[1].as_subclass(torch.Tensor)[0].long())


@pytest.mark.parametrize("centre", [0.5, 1.0])
def test_judged_bytes_are_what_one_image_becomes(tmp_path: Path, centre: float) -> None:
    data, augment = open_data(folders(tmp_path)), Augment(size=9, centre=centre)
    one = Samples(data.train, eval_transform(augment, data), 0)
    many = [Samples(data.train, eval_bytes(augment, data), 0)[0, at].image for at in range(3)]
    whole = numbers(augment, data)(torch.stack(many))
    assert all(torch.equal(whole[at], one[0, at].image) for at in range(3))
    assert not torch.equal(Numbers([0.5], [0.5])(many[0]), one[0, 0].image)  # the control


def test_judging_takes_the_centre(tmp_path: Path) -> None:
    data = open_data(folders(tmp_path, side=32))
    image = Samples(data.train, eval_transform(Augment(size=28, centre=0.875), data), 0)[0, 0].image
    pixels = torch.from_numpy(np.array(data.train.load(0)[0])).permute(2, 0, 1)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert torch.allclose(image, (pixels[:, 2:30, 2:30] / 255 - mean) / std, atol=1e-6)
