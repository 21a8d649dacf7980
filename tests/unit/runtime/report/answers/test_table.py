"""Texts and numbers of answers, as a page shows them."""

from __future__ import annotations

from nemotron_style.runtime.report.answers.table import (
    MOST_TEXT,
    cut_text,
    name_attributes,
    shade,
    show_answer,
    signed,
)


def test_an_advantage_has_a_shade_by_its_size():
    shades = [shade(value, 6.0) for value in (-6.0, -2.0, 0.0, 0.01, 3.1, 6.0, float("nan"))]
    assert shades == [-3, -1, 0, 1, 2, 3, 0]
    assert shade(1.0, 0.0) == 0


def test_a_long_answer_is_cut_and_a_secret_is_masked(monkeypatch):
    assert len(cut_text("x" * 10_000)) == MOST_TEXT + 4
    monkeypatch.setenv("SOME_API_KEY", "sesame-open-12345")
    assert "sesame" not in cut_text("the key is sesame-open-12345")


def test_what_is_missing_is_said_and_a_zero_has_no_sign():
    assert show_answer(None) == "(did not finish)"
    assert [signed(value) for value in (2.0, -1.5, 0.0, -0.0)] == ["+2", "-1.5", "0", "0"]
    assert name_attributes({"helpfulness": 4, "verbosity": 0.51}) == "helpfulness 4, verbosity 0.51"
    assert name_attributes(None) == ""
