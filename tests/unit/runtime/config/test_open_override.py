"""Where YAML files are the schema: an override names one of their keys, in its type."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from nemotron_style.runtime.config.open_override import check_open
from nemotron_style.runtime.config.override import parse_override
from nemotron_style.runtime.errors import ConfigError

VALUES: dict[str, Any] = {
    "train": {"steps": 5, "lr": 0.5, "name": "a", "big": True, "path": "${oc.env:HOME}"},
    "models": [{"alias": "one"}],
    "nothing": None,
    "wanted": "???",
}


def check(text: str) -> None:
    check_open(copy.deepcopy(VALUES), parse_override(text))


@pytest.mark.parametrize(
    "text",
    [
        "train.steps=6",
        "train.lr=1",
        "train.name=b",
        "train.big=false",
        "train.path=/data",
        "models.0.alias=two",
        "nothing=[1, 2]",
        "wanted=5",
        "train.steps='${nothing}'",
        "+train.epochs=2",
        "++train.steps=many",
        "~train.lr",
    ],
)
def test_a_key_of_the_files_is_set_in_its_type(text) -> None:
    check(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.setps=6", "is in no file of this config; did you mean 'train.steps'"),
        ("train.epochs=2", "to add it, write \\+train.epochs=2"),
        ("~train.epochs", "is in no file of this config"),
        ("+train.steps=6", "exists already; drop the plus: train.steps=6"),
        ("train.steps=6.5", "got 6.5; allowed: a whole number; to change it, write \\+\\+train"),
        ("train.steps=true", "allowed: a whole number"),
        ("train.lr=fast", "allowed: a number"),
        ("train.lr=false", "allowed: a number"),
        ("train.big=1", "allowed: true or false"),
        ("train.name=5", "allowed: a string"),
        ("train.steps=null", "got null; allowed: a whole number"),
        ("train=5", "allowed: a table of keys"),
        ("models={}", "allowed: a list"),
    ],
)
def test_anything_else_is_refused_with_the_way_to_do_it(text, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check(text)
