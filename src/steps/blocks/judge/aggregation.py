"""From the verdicts on pairs to one reward for each answer of a group; no torch.

    tie (score_1 == score_2):  score_1 += 3.5 - ranking,  score_2 -= 3.5 - ranking
    base_i   = mean of the scores of answer i over all its comparisons
    reward_i = base_i + bonuses + c_r w^r_i + c_a w^a_i + c_s w^s_i
    w_i      = u_i - mean(u),  u_i = 1 - (x_i - min x) / (max x - min x)

with x the length of the reasoning, of the answer, or its style density. The adjustments compare
answers of one group only and (bonuses apart) sum to zero. Note what they do where a judge cannot
tell answers apart: they are then the whole reward, and short answers win.

Source: NeMo-Gym's ``genrm_compare`` (``simple_tiebreaker``) and its style penalty. One of that
penalty's emoji ranges, U+24C2 to U+1F251, holds all of Chinese, Japanese and Korean, so every
character of these languages counts as an emoji: do not use it for them.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron_style.steps.blocks.judge.pairing import Pair
from nemotron_style.steps.blocks.judge.verdict import EVEN, Verdict

METHODS = ("simple_tiebreaker",)


@dataclass(frozen=True)
class Answer:
    """The final answer of a sample, and the reasoning before it."""

    text: str
    reasoning: str = ""


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """How verdicts become rewards, by NeMo-Gym's names; all adjustments are off by default.

    ``default_score`` is the base of an answer that was never compared; None refuses it.
    """

    aggregator_method: str = "simple_tiebreaker"
    reasoning_bonus: float = 0.0
    answer_bonus: float = 0.0
    top_percentile: float = 0.2
    group_reasoning_length_penalty_coeff: float = 0.0
    group_answer_length_penalty_coeff: float = 0.0
    group_style_penalty_coeff: float = 0.0
    default_score: float | None = None

    def __post_init__(self) -> None:
        if self.aggregator_method not in METHODS:
            allowed = ", ".join(METHODS)
            raise ValueError(f"aggregator_method {self.aggregator_method!r} is none of {allowed}")
        if not 0 <= self.top_percentile <= 1:
            raise ValueError(f"top_percentile ({self.top_percentile}) must be from 0 to 1")


@dataclass(frozen=True)
class GroupRewards:
    """Rewards in the order of the answers, and the base scores before any adjustment."""

    rewards: Sequence[float]
    base_scores: Sequence[float]

    @property
    def bonuses(self) -> list[float]:
        pairs = zip(self.rewards, self.base_scores, strict=True)
        return [reward - base for reward, base in pairs]


def aggregate(
    answers: Sequence[Answer],
    pairs: Sequence[Pair],
    verdicts: Sequence[Verdict],
    how: Aggregation = Aggregation(),
) -> GroupRewards:
    """The rewards of one group. Raises ValueError for an answer that no verdict is about."""
    base = base_scores(len(answers), pairs, verdicts, default=how.default_score)
    if len(answers) < 2:
        return GroupRewards(base, base)
    rewards = _add_bonuses(base, answers, how)
    for values, coefficient in _measures(answers, how):
        if coefficient > 0:
            changes = [coefficient * weight for weight in centred_weights(values)]
            rewards = [old + change for old, change in zip(rewards, changes, strict=True)]
    return GroupRewards(rewards, base)


def base_scores(
    count: int, pairs: Sequence[Pair], verdicts: Sequence[Verdict], *, default: float | None = None
) -> list[float]:
    """The mean score of each answer, after ties are broken."""
    scores: list[list[float]] = [[] for _ in range(count)]
    for pair, verdict in zip(pairs, verdicts, strict=True):
        shift = EVEN - verdict.ranking if verdict.is_tie else 0.0
        scores[pair.first].append(verdict.score_1 + shift)
        scores[pair.second].append(verdict.score_2 - shift)
    if default is None and not all(scores):
        raise ValueError(
            f"answers without a verdict: {[i for i, own in enumerate(scores) if not own]}"
        )
    return [statistics.fmean(own) if own else float(default or 0.0) for own in scores]


def centred_weights(values: Sequence[float]) -> list[float]:
    """1 for the least and 0 for the largest value, minus the mean; all 0 where they are equal."""
    low, high = min(values), max(values)
    if low == high:
        return [0.0] * len(values)
    weights = [1.0 - (value - low) / (high - low) for value in values]
    mean = sum(weights) / len(weights)
    return [weight - mean for weight in weights]


def verdict_metrics(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Mean and population deviation of the scores as they were given, and the share of ties."""
    if not verdicts:
        return {}
    scores = [score for each in verdicts for score in (each.score_1, each.score_2)]
    return {
        "mean_individual_score": statistics.fmean(scores),
        "std_individual_score": statistics.pstdev(scores),
        "tiebreak_usage_rate": sum(each.is_tie for each in verdicts) / len(verdicts),
    }


def _add_bonuses(base: Sequence[float], answers: Sequence[Answer], how: Aggregation) -> list[float]:
    """A bonus for the shortest reasoning, then for the shortest answer, if it is among the best."""
    rewards = list(base)
    best = sorted(base, reverse=True)
    threshold = best[max(0, int(len(base) * how.top_percentile) - 1)]
    texts = {"reasoning": how.reasoning_bonus, "text": how.answer_bonus}
    for name, bonus in texts.items():
        lengths = [len(getattr(answer, name).strip()) for answer in answers]
        present = [index for index, length in enumerate(lengths) if length]
        if bonus <= 0 or not present:
            continue
        shortest = min(present, key=lengths.__getitem__)
        if rewards[shortest] >= threshold:
            rewards[shortest] += bonus
    return rewards


def _measures(answers: Sequence[Answer], how: Aggregation) -> list[tuple[Sequence[float], float]]:
    """What is compared within the group, each with its coefficient."""
    return [
        (
            [len(answer.reasoning.strip()) for answer in answers],
            how.group_reasoning_length_penalty_coeff,
        ),
        ([len(answer.text.strip()) for answer in answers], how.group_answer_length_penalty_coeff),
        ([style_density(answer.text) for answer in answers], how.group_style_penalty_coeff),
    ]


_CODE = re.compile(r"```.*?```", re.DOTALL)


_COUNTED = {
    "header_count": [re.compile(r"^#{1,6}\s", re.MULTILINE)],
    "list_count": [
        re.compile(r"^\s*\d+\.\s", re.MULTILINE),
        re.compile(r"^\s*[-*+]\s", re.MULTILINE),
    ],
    "bold_count": [re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")],
}


_EMOJI_RANGES = (
    (0x1F600, 0x1F64F),
    (0x1F300, 0x1F5FF),
    (0x1F680, 0x1F6FF),
    (0x1F1E0, 0x1F1FF),
    (0x2702, 0x27B0),
    (0x24C2, 0x1F251),
    (0x1F900, 0x1F9FF),
    (0x1FA00, 0x1FA6F),
    (0x1FA70, 0x1FAFF),
    (0x2600, 0x26FF),
    (0x2700, 0x27BF),
)


_EMOJI = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _EMOJI_RANGES) + "]")


def count_style(text: str) -> dict[str, int]:
    """Headers, list items, bold spans and emoji outside of fenced code."""
    plain = _plain(text)
    counts = {
        name: sum(len(each.findall(plain)) for each in rules) for name, rules in _COUNTED.items()
    }
    return {**counts, "emoji_count": len(_EMOJI.findall(plain))}


def style_density(text: str) -> float:
    """Decorations for each character of the text without its code; 0 for none."""
    plain = _plain(text)
    return sum(count_style(text).values()) / len(plain) if plain else 0.0


def _plain(text: str) -> str:
    return _CODE.sub("", text).strip()
