"""Samples of a step are written so that a reader sees the best, the worst, and one whole group."""

from __future__ import annotations

import json
from operator import itemgetter

from nemotron_style.steps.blocks.training.sample_table import (
    best_and_worst,
    describe_samples,
    widest_group,
    write_samples,
    write_validation,
)


def row(group, sample, reward):
    return {"group": group, "sample": sample, "reward": reward, "answer": f"{group}/{sample}"}


ROWS = [row(0, at, 1.0) for at in range(12)] + [row(1, at, at / 2) for at in range(12)]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_and_the_worst_stand_once_the_best_first():
    found = best_and_worst(ROWS)
    assert [each["answer"] for each in found[:4]] == ["1/11", "1/10", "1/9", "1/8"]
    assert [each["answer"] for each in found[4:]] == ["0/11", "1/2", "1/1", "1/0"]
    assert best_and_worst(ROWS[:3]) == ROWS[:3]
    assert describe_samples(ROWS, text="answer") == "best 5.5 1/11; worst 0 1/0"
    assert describe_samples([], text="answer") == "no sample has a reward"


def test_the_group_whose_rewards_differ_most_is_shown_whole():
    found = widest_group(ROWS)
    assert {each["group"] for each in found} == {1}
    assert [each["sample"] for each in found] == [11, 10, 9, 8, 3, 2, 1, 0]
    assert {each["whole_group"] for each in found} == {12}
    assert widest_group(ROWS[:12]) == []  # equal rewards teach nothing
    assert widest_group([]) == []


def test_a_step_that_is_done_again_writes_the_same(tmp_path):
    for _ in range(2):
        write_samples(tmp_path, 3, ROWS)
        found = read(tmp_path / "samples" / "step-00000003.jsonl")
        assert found == [*best_and_worst(ROWS), *widest_group(ROWS)]


def test_of_held_out_answers_those_that_gained_most_and_least_are_kept(tmp_path):
    rows = [{"prompt": str(at), "gain": at % 7} for at in range(20)]
    write_validation(tmp_path, 12, rows, gain=itemgetter("gain"))
    found = read(tmp_path / "samples" / "validation-00000012.jsonl")
    assert [each["gain"] for each in found] == [6, 6, 5, 5, 1, 0, 0, 0]
