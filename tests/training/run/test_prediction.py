"""What a run deployed answers, image for image, what its evaluation answered."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.nightly import rare
from refold.cli.app import main
from refold.errors import InputError
from refold.exporting import FORMATS, Runtime, describe, described, read_provenance
from refold.exporting.formats.appendix import append, appended
from refold.exporting.provenance import ABOUT
from refold.training import network_of, open_data, predict
from refold.training.data.augment import eval_transform
from refold.training.loop.learner import at_size
from refold.training.recipes.cookbook import load_recipe
from training.pictures import folders, masks
from training.runs import tiny

Say = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("data"), val=4, side=19, classes=("yak", "zebra"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    files = {"deploy.files": ["safetensors", "onnx", "pt2", "xml"], "augment.crop": "resized"}
    tiny(folder, data, changes={**files, "epochs": 1, "augment.mean": [0.4, 0.5, 0.6]})
    return folder


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def call(*words: str | Path) -> str:
        capsys.readouterr()
        assert main(["predict", *map(str, words)]) == 0
        return capsys.readouterr().out

    return call


def wanted(run: Path, data: Path) -> dict[str, torch.Tensor]:
    """Return what the network in train form says of the validation images."""
    recipe: Any = load_recipe("folder", json_of(run))
    opened = open_data(data)
    prepare = eval_transform(recipe.augment, opened)
    network = network_of(run, "best")
    with torch.no_grad():
        return {
            opened.val.name(n): network(prepare(*opened.val.load(n))[0][None])[0]
            for n in range(len(opened.val))
        }


def json_of(run: Path) -> dict[str, Any]:
    from refold.training.recipes.cookbook import from_yaml

    return from_yaml(run / "config.yaml")["recipe"]


@pytest.mark.parametrize(
    "name", ["", "deploy.onnx", "deploy.pt2", "deploy.xml", "deploy.safetensors"]
)
def test_every_file_answers_as_the_evaluation_did(run: Path, data: Path, name: str) -> None:
    found = {answer.image: answer for answer in predict(run / name, [data / "val"])}
    truth = wanted(run, data)
    assert found.keys() == truth.keys()
    for image, output in truth.items():
        assert torch.allclose(found[image].output, output, atol=1e-4)
        names = [name for name, _ in found[image].best()]
        assert names[0] == ("yak", "zebra")[int(output.argmax())]
        assert sum(share for _, share in found[image].best()) == pytest.approx(1)


def test_files_and_summary_say_what_is_needed(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classes"] == ["yak", "zebra"]
    steps = summary["preprocessing"]
    assert steps["mean"] == [0.4, 0.5, 0.6]
    assert (steps["resize"], steps["crop"], steps["input"]) == (14, [12, 12], [3, 12, 12])
    for suffix in ("onnx", "safetensors", "pt2", "xml"):
        about = described(run / f"deploy.{suffix}")
        assert about["classes"] == ["yak", "zebra"]
        assert about["preprocessing"] == steps
        told = read_provenance(run / f"deploy.{suffix}")
        assert float(told["error"].split()[0]) <= 1e-9
        assert told["source"] == about["model"]
        words = (run / f"deploy.{suffix}").read_bytes()
        assert str(run).encode() not in words
        assert str(Path(__file__).parent).encode() not in words


def test_ten_lines_without_refold_give_the_same_answers(run: Path, data: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "deploying.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    found = {answer.image: answer.best(1)[0][0] for answer in predict(run, [data / "val"])}
    for image, name in found.items():
        names: dict[str, Any] = {}
        words = code.replace("RUN/deploy.onnx", str(run / "deploy.onnx")).replace(
            "photo.jpg", image
        )
        exec(words, names)
        assert names["classes"][int(names["scores"].argmax())] == name


def test_a_table_json_and_csv(run: Path, data: Path, say: Say) -> None:
    pattern = f"{data}/val/yak/*.png"
    rows = json.loads(say(run, pattern, "--json"))
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert {row["class"] for row in rows[0]["classes"]} == {"yak", "zebra"}
    lines = say(run, pattern, "--csv", "--top", "1").splitlines()
    assert len(lines) == 5
    assert lines[0] == "image,class,share"
    assert lines[1].split(",")[1] == rows[0]["classes"][0]["class"]
    assert rows[0]["classes"][0]["class"] in say(run, pattern)


@pytest.mark.parametrize("name", ["summary.json", "deploy.onnx"])
def test_a_damaged_file_of_a_run_is_named(
    run: Path, data: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / name
    file.write_bytes(file.read_bytes()[:60])
    assert main(["predict", str(tmp_path / "run"), str(data / "val")]) == 2
    assert f"{file} cannot be " in capsys.readouterr().err


def test_what_is_missing_is_said(run: Path, tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="there is no image at 'nowhere'"):
        list(predict(run, ["nowhere"]))
    with pytest.raises(InputError, match="holds no run"):
        list(predict(tmp_path, [data]))
    with pytest.raises(InputError, match="there is no run or file"):
        list(predict(tmp_path / "x.onnx", [data]))
    with pytest.raises(InputError, match="there is no run or file"):
        list(predict(run / "typo.safetensors", [data]))


@pytest.mark.parametrize("suffix", [".pte", ".tflite"])
def test_a_file_for_phones_answers_one_image_at_a_time(
    run: Path, data: Path, tmp_path: Path, say: Say, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its library where that is installed; else with one that runs the same network."""
    images = sorted((data / "val").rglob("*.png"))[:3]
    wanted = json.loads(say(run, *images, "--json"))
    file = tmp_path / f"phone{suffix}"
    if importlib.util.find_spec({".pte": "executorch", ".tflite": "litert_torch"}[suffix]):
        assert main(["convert", str(run), "-o", str(file)]) == 0
    else:
        file.write_bytes(b"program")
        entries = {ABOUT: json.dumps(described(run / "deploy.onnx"))}
        append(file, entries)
        monkeypatch.setattr(
            "refold.exporting.metadata.read_entries", lambda path: appended(Path(path))
        )
        kind = replace(FORMATS[suffix], runtime=one_image_at_a_time(run))
        monkeypatch.setitem(FORMATS, suffix, kind)
    found = json.loads(say(file, *images, "--json"))
    for one, other in zip(wanted, found, strict=True):
        shares = [{row["class"]: row["share"] for row in rec["classes"]} for rec in (one, other)]
        assert shares[1] == pytest.approx(shares[0], rel=1e-4)


def one_image_at_a_time(run: Path) -> Runtime:
    """Return a runtime that takes a batch of one, as those of phones do."""
    network = network_of(run, "best")

    def call(opened: object, inputs: Any) -> list[torch.Tensor]:
        (images,), _ = inputs
        assert images.shape == (1, 3, 12, 12)
        return [network(images)]

    return Runtime("a fake", lambda path: None, call, lambda opened: {"x": (1, 3, 12, 12)})


def test_a_file_for_phones_names_the_library_that_lacks(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("ai_edge_litert"):
        pytest.skip("it is installed")
    file = tmp_path / "phone.tflite"
    file.write_bytes(b"program")
    assert main(["predict", str(file), str(data / "val")]) == 2
    assert "does not say how images are prepared" in capsys.readouterr().err
    describe(file, described(run / "deploy.onnx"))
    assert main(["predict", str(file), str(data / "val")]) == 2
    assert "pip install 'refold[litert]'" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".xml", ".pt2", *rare(".onnx", "aot.pt2")])
def test_a_file_of_a_fixed_batch_answers_for_any_number_of_images(
    run: Path, data: Path, tmp_path: Path, say: Say, suffix: str
) -> None:
    """Two at once, and five to ask: the last is asked with a copy of itself."""
    images = sorted((data / "val").rglob("*.png"))[:5]
    wanted = json.loads(say(run, *images, "--json"))
    file = tmp_path / f"fixed{suffix}"
    words = ["convert", str(run), "-o", str(file), "--dynamic", "none", "--batch", "2"]
    assert main([*words, "--aot"] if suffix.startswith("aot") else words) == 0
    found = json.loads(say(file, *images, "--json"))
    for one, other in zip(wanted, found, strict=True):
        assert other["image"] == one["image"]
        assert [row["class"] for row in one["classes"]] == [
            row["class"] for row in other["classes"]
        ]
        shares = [[row["share"] for row in record["classes"]] for record in (one, other)]
        assert shares[1] == pytest.approx(shares[0], rel=1e-5)


def test_a_file_for_another_size_than_its_images_is_refused(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "large.xml"
    words = ["convert", str(run), "-o", str(file), "--dynamic", "none", "--input-size", "3x24x24"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["predict", str(file), str(data / "val")]) == 2
    assert "takes images of 3 x 24 x 24, and says that they are prepared at" in (
        capsys.readouterr().err
    )


def test_an_image_that_cannot_be_read_is_named_and_the_rest_is_answered(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = data / "val" / "yak" / "0.png", tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:40])
    assert main(["predict", str(run), str(bad), str(good), "--json"]) == 1
    done = capsys.readouterr()
    first, second = json.loads(done.out)
    assert first["image"] == str(bad)
    assert first["error"]
    assert second["classes"]
    assert f"{bad} cannot be read" in done.err
    assert main(["predict", str(run), str(bad), str(good), "--csv", "--top", "1"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["predict", str(run), str(bad)]) == 2
    assert capsys.readouterr().out == ""


def test_an_embedding_of_no_numbers_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=2, **options):\n"
        "        super().__init__()\n"
        "        self.fc, self.count = nn.Linear(3 * 12 * 12, 4), num_classes\n"
        "    def forward(self, x):\n"
        "        return self.fc(x.flatten(1))[:, : self.count]\n"
    )
    changes = {"model": f"{tmp_path}/net.py:Net", "task": "embed", "loss.name": "arcface"}
    with pytest.raises(InputError, match="an embedding of no numbers: with num_classes=0 it must"):
        tiny(tmp_path / "run", data, changes=changes)


def test_masks_of_what_makes_none(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run), str(data / "val"), "-o", str(tmp_path / "masks")]) == 2
    assert "this network makes none: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_masks_are_those_of_the_evaluation(tmp_path: Path, say: Say) -> None:
    data = masks(tmp_path / "data", side=16)
    changes = {
        "task": "segment", "epochs": 1, "augment.size": 16, "ema": None,
        "deploy.files": ["pt2"],
    }  # fmt: skip
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    run = tiny(tmp_path / "run", data, model=net, changes=changes)
    say(tmp_path / "run", data / "val" / "images", "-o", tmp_path / "masks")
    opened = open_data(data, "segment")
    recipe = load_recipe("folder", json_of(tmp_path / "run"))
    prepare = eval_transform(recipe.augment, opened)
    for number in range(len(opened.val)):
        pixels, mask = prepare(*opened.val.load(number))
        with torch.no_grad():
            wanted = at_size(run.model(pixels[None]), mask[None]).argmax(1)[0]
        name = Path(opened.val.name(number)).stem
        found = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        assert np.array_equal(found, wanted.numpy())
    image = tmp_path / "0.png"
    Image.open(opened.val.name(0)).save(image)
    before = image.read_bytes()
    assert main(["predict", str(tmp_path / "run"), str(image), "-o", str(tmp_path)]) == 2
    assert image.read_bytes() == before


def test_embeddings_are_vectors(tmp_path: Path, data: Path, say: Say) -> None:
    changes = {"task": "embed", "loss": {"name": "am_softmax"}, "epochs": 1}
    tiny(tmp_path / "run", data, changes=changes)
    rows = json.loads(say(tmp_path / "run", data / "val", "--json"))
    assert rows[0]["likeness"] == pytest.approx(1)
    assert np.isfinite(rows[1]["vector"]).all()
    head, first = say(tmp_path / "run", data / "val", "--csv").splitlines()[:2]
    assert head.split(",") == ["image", *(f"v{at}" for at in range(len(rows[0]["vector"])))]
    assert [float(text) for text in first.split(",")[1:]] == rows[0]["vector"]
    assert "similarity to the first" in say(tmp_path / "run", data / "val")
