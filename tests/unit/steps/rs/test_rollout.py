"""Samples and scores at the same time, and what of a sample is sent."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError, Interrupted
from nemotron_style.steps.blocks.data.chat.nemo_chat import NemoChat
from nemotron_style.steps.blocks.data.prompt import Prompt
from nemotron_style.steps.blocks.generation.engine import Sample
from nemotron_style.steps.blocks.generation.sampling_params import SamplingParams
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.reward.client import RewardUnavailable
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.rs.actor.best_of_n import choose
from nemotron_style.steps.rs.actor.reward_pool import RewardPool
from nemotron_style.steps.rs.actor.rollout import RolloutSampler, seed_prompts
from nemotron_style.steps.rs.actor.samples import sample_rows, validation_rows
from nemotron_style.steps.rs.actor.validation import (
    ValidationResult,
    better_share,
    paired_gain,
)

STOP = 9
WORDS = {0: "", 1: "a", 2: " b", 3: "<control>", 4: "\n", 5: " END", 6: " tail", STOP: "<stop>"}


class Words:
    """A tokenizer of eight words; the model can say more ids than these."""

    eos_ids = (STOP,)

    def knows(self, ids: Sequence[int]) -> bool:
        return WORDS.keys() >= set(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(WORDS[token] for token in ids)


class Texts:
    """Ends an answer with a line break and the stop token."""

    def read_response(self, text: str) -> str:
        return text.removesuffix("<stop>").removesuffix("\n")

    def response(self, text: str) -> str:
        if "<" in text:
            raise InputError("a control token stands inside a value")
        return text


class Client:
    """Scores a text by its length; ``before`` is called with the number of the request."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self.before, self.sent, self.stopping = before, [], lambda: False
        self.counts: dict[str, int] = {}

    def score(self, conversations: Sequence[Any]) -> list[RewardScore]:
        self.sent.append(conversations)
        self.before(len(self.sent))
        return [RewardScore(float(len(one[-1]["content"])), {}) for one in conversations]

    def close(self) -> None:
        """Nothing is open."""


class Script:
    """Draws what it is told to, one list of samples a prompt; ``during`` is called first."""

    def __init__(self, groups: Sequence[Any], during: Callable[[int], None] = lambda n: None):
        self.groups, self.during, self.calls = iter(groups), during, 0

    def generate(self, prompts: Sequence[Any], *_: Any, **__: Any) -> list[list[Sample]]:
        self.calls += 1
        self.during(self.calls)
        return [
            [Sample(list(ids), [0.0] * len(ids), "stop") for ids in next(self.groups)]
            for _ in prompts
        ]


def sample(
    groups: Sequence[Any], client: Any, *, during: Any = lambda n: None, lot: int = 1
) -> Any:
    parallel.initialize(seed=1)
    prompts = [
        Prompt(({"role": "user", "content": str(number)},), [1]) for number in range(len(groups))
    ]
    seeded = seed_prompts(prompts, range(len(groups)), "x")
    params = SamplingParams(max_new_tokens=9, stop_ids=[STOP], end_strings=["END"])
    with RewardPool(client) as pool:
        sampler = RolloutSampler(Script(groups, during), pool, NemoChat(Words(), Texts()), params)  # type: ignore[arg-type]
        sampled = sampler.sample(seeded, samples=len(groups[0]), lot=lot)
        return sampler.collect_scores(seeded, sampled)


def test_the_next_are_drawn_while_these_are_scored() -> None:
    begun, drawn = threading.Event(), threading.Event()

    def before(number: int) -> None:
        begun.set()
        assert number > 1 or drawn.wait(120), "nothing was drawn before the first scores were there"

    def during(call: int) -> None:
        if call == 2:
            assert begun.wait(120), "the first scores were not asked for before the second draw"
            drawn.set()

    rollouts = sample([[[1, STOP]], [[1, 2, STOP]]], Client(before), during=during)
    assert [one.rewards for one in rollouts] == [[1.0], [3.0]]


def test_the_order_of_arrival_changes_nothing() -> None:
    draw = random.Random(1)
    groups = [[[1] * draw.randint(1, 5), [1, 2] * draw.randint(1, 3)] for _ in range(12)]
    rollouts = sample(groups, Client(lambda number: time.sleep(draw.random() / 50)), lot=1)
    assert rollouts == sample(groups, Client(), lot=12)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([1, 2, 4, STOP], "a b"),
        ([1, 2], "a b"),  # cut short: sent as it stands
        ([1, 5, 6, 4, STOP], "a "),  # an end string, and what came with it
        ([1, 3, 4, STOP], None),  # a control token in the middle
        ([STOP], None),
        ([4, STOP], None),
        ([0, STOP], None),
        ([1, 11, STOP], None),  # a row that pads the embedding
        ([1, 7, STOP], None),  # a gap between ids
    ],
)
def test_what_a_sample_says(tokens: list[int], text: str | None) -> None:
    client = Client()
    [rollout] = sample([[tokens, [1, STOP]]], client)
    assert rollout.responses[0].text == text
    sent = [one[-1]["content"] for lot in client.sent for one in lot]
    assert sent == ([text] if text else []) + ["a"]
    assert (rollout.rewards[0] is None) == (text is None)
    assert rollout.responses[0].tokens == tokens  # what is trained on is what was drawn


def test_the_same_text_is_sent_once_and_is_tied() -> None:
    client = Client()
    [rollout] = sample([[[1, 2, STOP], [1, STOP], [1, 2, STOP]]], client)
    assert len(client.sent[0]) == 2
    choice = choose(rollout.rewards, 1)
    assert (choice.kept, choice.tied) == ((0,), True)
    [row] = [row for row in sample_rows([rollout], [choice]) if row["kept"]]
    assert (row["sample"], row["tied"], row["response"]) == (0, True, "a b")


@pytest.mark.parametrize("error", [RewardUnavailable("gone"), Interrupted("stop")])
def test_an_error_of_any_lot_is_raised(error: Exception) -> None:
    def before(number: int) -> None:
        if number == 2:
            raise error

    with pytest.raises(type(error), match=str(error)):
        sample([[[1, STOP]]] * 4, Client(before))


def test_gains_are_paired_and_clustered_by_prompt() -> None:
    before = [1.0, 5.0, 1.0, 5.0]
    gain, low, high = paired_gain(before, [2.0, 6.0, 2.0, 6.0], prompts=2)
    assert (gain, low, high) == (1.0, -math.inf, math.inf)  # no spread: nothing is known of it
    gain, low, high = paired_gain(before, [2.0, 8.0, 2.0, 8.0], prompts=2)
    assert gain == 2.0
    assert high - gain == gain - low == pytest.approx(12.7062, abs=1e-3)
    ten = [float(number % 2) for number in range(10)]  # against scipy.stats.t.interval
    assert paired_gain([0.0] * 10, ten, prompts=10)[1:] == pytest.approx(
        (0.12298, 0.87702), abs=1e-5
    )
    assert better_share([1.0, None, 3.0, 4.0], [2.0, 1.0, 3.0, 0.0]) == 0.5


def test_held_out_responses_are_written_with_their_rewards_and_what_is_true_of_them() -> None:
    prompts = [Prompt(({"role": "user", "content": text},), [1]) for text in ("x", "y")]
    start = ValidationResult(0, 2, [1.0, None, 3.0], {"good": [0, 1, 2]}, texts=["a", None, "c"])
    now = ValidationResult(4, 2, [2.0, 1.0, 3.5], {"good": [4, 4, 4]}, texts=["d", "e", "f"])
    rows = validation_rows(start, now, prompts)
    assert [(row["prompt"], row["before"], row["after"]) for row in rows] == [
        ("x", "a", "d"),
        ("x", "c", "f"),
    ]
    assert [row["rewards"] for row in rows] == [[1.0, 2.0], [3.0, 3.5]]
    assert rows[1]["truth"] == [{"good": 2}, {"good": 4}]
    restored = ValidationResult(0, 2, [1.0, None, 3.0])  # of a state from before there were texts
    assert validation_rows(restored, now, prompts) == []


def test_what_has_no_reward_is_left_out_of_the_mean() -> None:
    result = ValidationResult(step=0, prompts=2, rewards=[1.0, None, 3.0])
    assert result.reward == 2.0
    assert result.metrics(result)["validation_unusable_samples"] == 1
