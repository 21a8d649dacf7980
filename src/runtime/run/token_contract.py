"""Two inputs of a step that must be made of the same tokens.

The record of a checkpoint, and that of rows whose numbers hold for one tokenizer alone, has the
digests of tokenizer and chat template, and a canary: a fixed conversation, as text and as the token
ids that it was then. Which inputs of a step have to agree, its manifest says (``same_tokens_as``).
Records of earlier versions, and rows that are text and nothing else, have no such facts and are
joined with anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.store.record import Artifact


def check_tokens(plan: Plan, find: Callable[[str], Artifact | None]) -> list[Problem]:
    """A problem for every pair of inputs that must agree and does not.

    ``find`` gives the artifact in a slot; None where it is not known yet, or has no record.
    """
    problems = []
    for planned in plan.inputs:
        if planned.same_tokens_as is None:
            continue
        own, other = find(planned.slot), find(planned.same_tokens_as)
        if own and other and (difference := compare_tokens(own.facts, other.facts)):
            what = f"{own.ref} has other tokens than {other.ref} (input {planned.same_tokens_as}): "
            fix = suggest_agreement(own, other, planned.same_tokens_as)
            problem = Problem(where=plan.step, key=planned.slot, what=what + difference, fix=fix)
            problems.append(problem)
    return problems


def compare_tokens(left: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    """In what the facts of two records contradict each other; empty where they do not."""
    keys = {"tokenizer": "tokenizer_digest"}
    if left.get("chat_format") and right.get("chat_format"):
        # Of a template that was not chosen yet the digest is that of a program nobody has run.
        keys["chat template"] = "template_digest"
    pairs = {noun: (left.get(key), right.get(key)) for noun, key in keys.items()}
    parts = [f"{noun} {a} and {b}" for noun, (a, b) in pairs.items() if a and b and a != b]
    (text, ids), (other_text, other_ids) = (_read_canary(side) for side in (left, right))
    if ids and other_ids:
        # The same text as other ids under the same digests: another version of the library.
        if ids != other_ids and (parts or text == other_text):
            parts.append(_describe_first(ids, other_ids))
        elif parts:
            parts.append("the canary has the same ids in both")
    return "; ".join(parts)


def suggest_agreement(own: Artifact, other: Artifact, slot: str) -> str:
    """What to do: make the one again with the other, or take what it was made with."""
    made_with = [edge for edge in own.record.inputs if edge.kind == other.kind]
    producer = own.record.producer
    if not producer or not made_with:
        return f"give as {slot} what {own.ref} was made with, or make it again with {other.ref}"
    words = (
        f"steps run {producer.step} -c {producer.config_name} -i {made_with[0].slot}={other.ref}"
    )
    again = f"make it with this tokenizer: nemotron-style {words}"
    return f"{again}; or give what it was made with: -i {slot}={made_with[0].ref}"


def _read_canary(facts: Mapping[str, Any]) -> tuple[str, list[Any]]:
    canary = facts.get("canary")
    if not isinstance(canary, Mapping) or not isinstance(canary.get("ids"), list):
        return "", []
    return str(canary.get("text")), canary["ids"]


def _describe_first(left: list[Any], right: list[Any]) -> str:
    """The first token in which two canaries differ."""
    pairs = enumerate(zip_longest(left, right, fillvalue="none"), start=1)
    number, (one, two) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    return f"token {number} of the canary is {one} and {two}"
