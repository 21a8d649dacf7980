"""Tokens of a row take few bytes, and are read like the list that they stand for."""

from __future__ import annotations

import sys

from nemotron_style.steps.blocks.data.chat.token_array import mark_array, token_array


def test_a_token_takes_four_bytes_and_its_mark_one() -> None:
    ids, marks = token_array(list(range(100_000, 101_000))), mark_array([False, True] * 500)
    assert sys.getsizeof(ids) < 4200
    assert sys.getsizeof(marks) < 1200


def test_they_are_read_like_lists() -> None:
    ids, marks = token_array([7, 151_936, 9]), mark_array([False, True, True])
    assert [*ids[:2], *ids[2:]] == [7, 151_936, 9]
    assert type(ids[0]) is int
    assert sum(marks) == 2
    assert [bool(mark) for mark in marks] == [False, True, True]
