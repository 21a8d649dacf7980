"""The toy's ground truth: what attributes a response really has.

An alignment method is believed when it moves what it claims to move, measured by something it
cannot talk to. Here that is a rule: nouns have classes, classes have fitting adjectives, and a
response is good as far as the adjectives it names fit the noun of the question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.settings.json_model import read_json_model

Label = dict[str, int]
ATTRIBUTES = ("helpfulness", "verbosity")
LEVELS = 5
_PROMPT = re.compile(r"Describe the (\w+) (\w[\w ]*)\.")
_RESPONSE = re.compile(r"The (\w+) is (\w+(?: and \w+)*)\.")


class Truth(BaseModel):
    """The rules as ``truth.json`` holds them: ``nouns`` maps a noun to its class, ``classes`` a
    class to its fitting adjectives, and a prompt is a noun and a context."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int = Field(default=1, ge=1, le=1)
    nouns: dict[str, str]
    classes: dict[str, tuple[str, ...]] = Field(strict=False)
    contexts: tuple[str, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if strays := sorted(set(self.nouns.values()) - set(self.classes)):
            raise ValueError(f"nouns name classes that do not exist: {', '.join(strays)}")
        return self

    @cached_property
    def adjectives(self) -> tuple[str, ...]:
        """Every adjective, each once."""
        return tuple(dict.fromkeys(word for words in self.classes.values() for word in words))

    def prompt(self, noun: str, context: str) -> str:
        return f"Describe the {noun} {context}."

    def response(self, noun: str, adjectives: list[str]) -> str:
        return f"The {noun} is {' and '.join(adjectives)}."

    def fitting(self, noun: str) -> tuple[str, ...]:
        """The adjectives that fit a noun."""
        return self.classes[self.nouns[noun]]

    def noun_of(self, prompt: str) -> str:
        """The noun a prompt asks about.

        Raises:
            InputError: the prompt is not one of this toy.
        """
        found = _PROMPT.fullmatch(prompt.strip())
        if found is None or found[1] not in self.nouns:
            raise InputError(
                Problem(
                    what="this truth knows nothing about the prompt",
                    got=repr(prompt),
                    allowed="Describe the <noun> <context>.",
                    fix="score prompts of the data set that the truth was made with",
                )
            )
        return found[1]

    def score(self, prompt: str, response: str) -> Label:
        """The attributes, 0 to 4 each, of any text given as a response to ``prompt``.

        Helpfulness is four times the share of its adjectives that fit, rounded; verbosity their
        number less one. Every mention counts, so saying a word twice is worth no more than saying
        another one. A response about another noun has none that fit. What is not a sentence of
        the form "The river is wide and calm." has 0 and 0, and so does one with a word that is no
        adjective.
        """
        noun = self.noun_of(prompt)
        found = _RESPONSE.fullmatch(response.strip())
        said = found[2].split(" and ") if found else []
        if found is None or not set(said) <= set(self.adjectives):
            return dict.fromkeys(ATTRIBUTES, 0)
        fitting = self.fitting(noun) if found[1] == noun else ()
        return {
            "helpfulness": _level(sum(word in fitting for word in said), len(said)),
            "verbosity": min(LEVELS, len(said)) - 1,
        }

    def reachable_labels(self) -> tuple[Label, ...]:
        """Labels that a response can have: of one adjective, all fit or none."""
        return tuple(
            {"helpfulness": helpfulness, "verbosity": count - 1}
            for count in range(1, LEVELS + 1)
            for helpfulness in sorted({_level(fits, count) for fits in range(count + 1)})
        )

    def format(self, label: Mapping[str, int]) -> str:
        """A label as it stands in texts: ``helpfulness:3,verbosity:1``."""
        return ",".join(f"{name}:{label[name]}" for name in ATTRIBUTES)

    def parse(self, text: str) -> Label | None:
        """A label from its text, or None when the text is none."""
        found = re.fullmatch(",".join(rf"{name}:([0-{LEVELS - 1}])" for name in ATTRIBUTES), text)
        return dict(zip(ATTRIBUTES, map(int, found.groups()), strict=True)) if found else None


def load_truth(path: str | Path) -> Truth:
    """Read ``truth.json``, or the one in a directory.

    Raises:
        InputError: there is none, or it is not a truth.
    """
    file = Path(path)
    file = file / "truth.json" if file.is_dir() else file
    absent = Problem(where=str(file), what="no truth.json to read")
    return read_json_model(Truth, file, absent=absent)


def _level(part: int, whole: int) -> int:
    """``part / whole`` in quarters, halves rounded up, without floating point."""
    return (8 * part + whole) // (2 * whole)
