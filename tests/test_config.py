"""Configuration: later wins, mistakes are named, recipes that come along are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

import tinyhat.config
from tinyhat.config import Config, build_config
from tinyhat.errors import UserError

RECIPES = sorted((Path(tinyhat.config.__file__).parent / "recipes").glob("*.yaml"))


def test_later_wins(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train:\n  epochs: 5\n  learning_rate: 3e-4\n  seed: 1\n")
    config = build_config(recipe, {"train.epochs": 4, "train.seed": None}, ["train.epochs=2.5"])
    assert (config.train.epochs, config.train.learning_rate, config.train.seed) == (2.5, 3e-4, 1)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_that_come_along_are_valid_and_say_what_they_are(path):
    assert isinstance(build_config(path.stem), Config)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("given", "value"),
    [("data.delimiter=,", ","), ("data.delimiter=|", "|"), ("data.label=null", None), ("data.label=[x", "[x")],
)
def test_set_takes_what_people_write(given, value):
    section, key = given.split("=")[0].split(".")
    assert getattr(getattr(build_config(None, None, [given]), section), key) == value


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("train.epochs=inf", "train.epochs"),
        ("train.seed=-1", "train.seed"),
        ("reading.strategy=heads", "reading.strategy"),
        ("readings.max_tokens=3", "did you mean 'reading'"),
        ("reading.maxtokens=3", "did you mean 'max_tokens'"),
        ("epochs=3", "names no section"),
    ],
)
def test_mistakes_are_named(given, sentence):
    with pytest.raises(UserError, match=sentence):
        build_config(None, None, [given])


def test_an_unreadable_recipe_is_one_sentence(tmp_path):
    (tmp_path / "r.yaml").write_text("train: [1, 2\n")
    with pytest.raises(UserError, match="is not readable YAML"):
        build_config(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("epochs: 3\n")
    with pytest.raises(UserError, match="must hold sections"):
        build_config(tmp_path / "r.yaml")
