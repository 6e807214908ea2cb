"""Every recipe that comes along holds; every mistake in one is named by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

import refold
from refold.errors import InputError
from refold.training import list_recipes, load_recipe
from refold.training.recipes.cookbook import parse_change, to_yaml


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_of_ours_holds(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.source
    assert recipe.aims
    assert recipe.model in refold.list_models()


def test_every_published_setting_has_one() -> None:
    wanted = """
        repvgg_imagenet dbb_imagenet dbb_cifar acnet_imagenet acnet_cifar_quick repmlp_imagenet
        repmlp_cifar rmnext_imagenet rmrep_imagenet resnetv2_cifar110 resnetv2_cifar164
        resnetv2_cifar1001 mobilenetv1_imagenet slimming_vgg19 digits
    """
    assert set(wanted.split()) <= set(list_recipes())


def test_a_recipe_survives_its_text(tmp_path: Path) -> None:
    for name in list_recipes():
        recipe = load_recipe(name)
        (tmp_path / "copy.yaml").write_text(to_yaml(recipe.model_dump(mode="json")))
        assert load_recipe(tmp_path / "copy.yaml") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nepochs: 1\nbatch_size: 2\nepoch: 3", r"r.yaml: unknown key 'epoch'.*'epochs'"),
        (
            "model: a\nepochs: 1\nbatch_size: 2\noptimizer: {lrate: 1}",
            r"r.yaml: unknown key 'optimizer.lrate'; did you mean 'lr'",
        ),
        ("model: a\nbatch_size: 2", r"r.yaml: the key 'epochs' is missing"),
        ("model: a\nepochs: 0\nbatch_size: 2", r"r.yaml: epochs: .*greater than 0, got 0"),
        (
            "model: a\nepochs: 1\nbatch_size: 2\nschedule: {kind: cosin}",
            r"r.yaml: schedule.kind: .*'cosine'.*got 'cosin'",
        ),
        ("model: a\nepochs: 1\nbatch_size: 2\ntask: embed", r"r.yaml: the losses am_softmax"),
        ("- model", r"r.yaml holds no keys"),
        ("model: [", r"r.yaml is not valid YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_unknown_recipes_and_changes() -> None:
    with pytest.raises(InputError, match=r"no recipe 'digit': did you mean digits"):
        load_recipe("digit")
    with pytest.raises(InputError, match="no recipe file"):
        load_recipe("nowhere.yaml")
    with pytest.raises(InputError, match=r"unknown key 'optimizer.rate'"):
        load_recipe("digits", {"optimizer.rate": 1})
    with pytest.raises(InputError, match="write key=value"):
        parse_change("lr")
    changed = load_recipe("digits", {"optimizer.lr": 0.01, "ema": 0.9, "mix.mixup": 0.1})
    assert (changed.optimizer.lr, changed.ema, changed.mix.mixup) == (0.01, 0.9, 0.1)
    assert changed.optimizer.nesterov  # the rest of what was changed stays


@pytest.mark.parametrize(
    ("key", "meant"),
    [("image_size", "augment.size"), ("image-size", "augment.size"), ("lr", "optimizer.lr"),
     ("weight_decay", "decay.value")],
)  # fmt: skip
def test_what_a_key_is_called_is_said(key: str, meant: str) -> None:
    with pytest.raises(InputError, match=rf"unknown key '{key}'; the recipe calls it '{meant}'"):
        load_recipe("digits", {key: 1})


def test_options_belong_to_their_own_model() -> None:
    own = load_recipe("digits")
    assert own.options
    assert load_recipe("digits", {"model": own.model}).options == own.options
    assert load_recipe("digits", {"model": "cifar_resnet20"}).options == {}
    chosen = {"model": "cifar_resnet20", "options": {"depths": [1, 1, 1]}}
    assert load_recipe("digits", chosen).options == chosen["options"]
    wide = {"block": "mobileone", "block_options": {"num_conv_branches": 4}}
    assert load_recipe("digits", wide).block_options == wide["block_options"]


@pytest.mark.parametrize("word", ["no", "off", "none", "null", "~"])
def test_no_value_in_any_words_of_yaml(tmp_path: Path, word: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: resnet18\nepochs: 1\nbatch_size: 4\nblock: {word}\nema: {word}\n")
    recipe = load_recipe(path, dict([parse_change(f"clip={word}")]))
    assert (recipe.block, recipe.ema, recipe.clip) == (None, None, None)


@pytest.mark.parametrize("word", ["no", "'no'", "fp32"])
def test_full_precision_has_a_name_that_yaml_leaves_alone(tmp_path: Path, word: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: resnet18\nepochs: 1\nbatch_size: 4\nprecision: {word}\n")
    recipe = load_recipe(path)
    assert recipe.precision == "fp32"
    path.write_text(to_yaml(recipe.model_dump(mode="json")))
    assert "precision: fp32" in path.read_text()
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("key", ["data.images", "epochs.x.y"])
def test_a_key_below_a_value_is_refused(key: str) -> None:
    above = key.split(".")[0]
    with pytest.raises(InputError, match=rf"there is no key '{key}': '{above}' is one value"):
        load_recipe("digits", {"data": "digits", key: 1})
