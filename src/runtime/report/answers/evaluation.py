"""Every answer of an evaluation, with the verdict of its judge or of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_style.runtime.report.answers.table import (
    SHOWN,
    AnswerRow,
    Cell,
    Remark,
    Row,
    Table,
    cut_text,
    last_message,
    name_attributes,
    show_answer,
    signed,
)
from nemotron_style.runtime.report.evidence import read_beginning, read_file
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store

SLOTS = ("baseline", "model")
ORDERS = ("the model's answer shown first", "the baseline's answer shown first")


def read_evaluation_answers(store: Store, evaluation: Artifact) -> list[Table]:
    """The answers in ``samples.jsonl`` of an evaluation, or of the card of a judge.

    Raises ArtifactError when the file is not the one that was committed.
    """
    content = read_file(store, evaluation, "samples.jsonl")
    rows = content.rows() if content else []
    slots = {edge.slot: edge.ref for edge in evaluation.record.inputs}
    total = f"{len(rows)}" if content and content.whole else f"the first {len(rows)}"
    matches = list(filter(is_match, rows))
    labelled = list(filter(is_labelled, rows))
    judged = [row for row in rows if {"response_1", "response_2", "sort"} <= row.keys()]
    if matches:
        heads = tuple(f"{slots.get(slot, slot)} ({slot})" for slot in SLOTS)
        chosen, note = choose_matches(_add_words(store, evaluation, matches), total)
        return [Table("Matches", evaluation.ref, heads, tuple(map(show_match, chosen)), note)]
    if labelled:
        shown = [slot for slot in SLOTS if slot in labelled[0]]
        chosen, note = choose_labelled(labelled, total)
        heads = tuple(slots.get(slot, slot) for slot in shown)
        cells = tuple(show_labelled(row, shown) for row in chosen)
        return [Table("Asked for a label", evaluation.ref, heads, cells, note)]
    if judged:
        chosen, note = choose_judged(judged, total)
        heads = ("response 1", "response 2")
        return [Table("Judged pairs", evaluation.ref, heads, tuple(map(_judged, chosen)), note)]
    return []


def is_match(row: Row) -> bool:
    """Whether a row has two answers, of which a judge preferred one."""
    return {"model", "baseline", "margins"} <= row.keys()


def is_labelled(row: Row) -> bool:
    """Whether a row has answers to a prompt with a label."""
    return {"label", "turns", "model"} <= row.keys()


def choose_matches(rows: Sequence[Row], total: str) -> tuple[list[Row], str]:
    """The clearest wins and losses, and what they were chosen from."""
    judged = [row for row in rows if row.get("decided") == "judged" and row["margins"]]
    wins = sorted((row for row in judged if row["score"] > 0.5), key=_margin, reverse=True)
    losses = sorted((row for row in judged if row["score"] < 0.5), key=_margin)
    ties = [row for row in judged if row["score"] == 0.5]
    chosen = [*wins[: SHOWN // 2], *losses[: SHOWN // 3]]
    chosen += ties[: SHOWN - len(chosen)]
    note = (
        f"The clearest of {len(wins)} wins, the clearest of {len(losses)} losses and the first of "
        f"{len(ties)} ties, of {total} matches."
    )
    return chosen or list(rows[:SHOWN]), note


def choose_labelled(rows: Sequence[Row], total: str) -> tuple[list[Row], str]:
    """One answer of each label, those in which the two models differ first; of many labels, some
    spread over all."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(str(row["label"]), []).append(row)
    labels = sorted(by_label)
    every = max(1, -(-len(labels) // SHOWN))
    shown = labels[::every]
    chosen = [next(filter(_differs, by_label[label]), by_label[label][0]) for label in shown]
    note = f"One answer for {len(shown)} of {len(labels)} labels, of {total} rows"
    if any(map(_differs, chosen)):
        note += ": the first that one model got right and the other wrong, where there is one"
    return chosen, f"{note}."


def choose_judged(rows: Sequence[Row], total: str) -> tuple[list[Row], str]:
    """The first pairs of each sort: what the judge got right, and how it got others wrong."""
    by_sort: dict[str, list[Row]] = {}
    for row in rows:
        by_sort.setdefault(str(row["sort"]), []).append(row)
    each = max(1, SHOWN // max(1, len(by_sort)))
    chosen = [row for own in by_sort.values() for row in own[:each]]
    counts = ", ".join(f"{len(own)} {sort}" for sort, own in by_sort.items())
    return chosen, f"The first of each sort, of {total} questions: {counts}."


def show_match(row: Row) -> AnswerRow:
    """A match: both answers, who was preferred by how much, what the truth and the judge say."""
    score, levels = row.get("score"), row.get("helpfulness") or {}
    cells = []
    for slot, wins in (("baseline", score is not None and score < 0.5), ("model", score == 1)):
        level = levels.get(slot)
        notes = () if level is None else (f"helpfulness {level} by the truth",)
        cells.append(Cell(show_answer(row[slot]), notes, "better" if wins else ""))
    words = {None: str(row.get("decided", "")), 0.5: "tie"}
    is_win = bool(score and score > 0.5)
    said = words.get(score, "model preferred" if is_win else "baseline preferred")
    margins = " and ".join(signed(margin) for margin in row["margins"])
    decided = str(row.get("decided", ""))
    detail = f"{margins} in the two orders" if margins and decided == "judged" else ""
    if detail and (truth := _truth_says(levels, score)):
        detail += f"; {truth}"
    return AnswerRow(
        cut_text(last_message(row.get("messages"))),
        tuple(cells),
        said if decided in ("judged", said) else f"{said} ({decided})",
        "" if score in words else "better" if is_win else "worse",
        detail,
        tuple(
            Remark(order, cut_text(text))
            for order, text in zip(ORDERS, row.get("words", ()), strict=False)
            if text
        ),
    )


def show_labelled(row: Row, slots: Sequence[str]) -> AnswerRow:
    """Answers to a prompt with a label, each with the attributes that it truly has."""
    cells = []
    for slot in slots:
        answer = row[slot]
        hit = bool(answer.get("hit"))
        has = name_attributes(answer.get("attributes"))
        notes = (f"{'✓ as asked' if hit else '✗ truly'}: {has}" if has else "✗",)
        cells.append(Cell(show_answer(answer.get("value")), notes, "better" if hit else "worse"))
    turns = row.get("turns") or [{}]
    prompt = f"{turns[-1].get('value', '')}\nasked for {str(row['label']).replace(',', ', ')}"
    return AnswerRow(cut_text(prompt), tuple(cells))


def _judged(row: Row) -> AnswerRow:
    """A question to a judge whose answer the truth knows."""
    truth = row.get("truth") or []
    verdict = row.get("verdict") or {}
    scores = [verdict.get("score_1"), verdict.get("score_2")]
    cells = []
    for at, name in enumerate(("response_1", "response_2")):
        notes = [f"judged {scores[at]:g}"] if scores[at] is not None else []
        notes += [f"truly {truth[at]:g}"] if at < len(truth) else []
        cells.append(Cell(show_answer(row[name]), tuple(notes)))
    sort = str(row["sort"])
    words = str(row.get("judgement", ""))
    return AnswerRow(
        cut_text(last_message(row.get("messages"))),
        tuple(cells),
        sort,
        "better" if sort == "right" else "worse",
        str(row.get("problem", "")),
        (Remark("the judge's answer", cut_text(words)),) if words else (),
    )


def _add_words(store: Store, evaluation: Artifact, matches: list[dict[str, Any]]) -> list[Row]:
    """The matches with what the judge said of each, as the evaluation's run wrote it down.

    Words are no part of the results; where the run is not there, or is of an earlier version, there
    are none.
    """
    producer = evaluation.record.producer
    if producer is None:
        return list(matches)
    path = store.layout.runs / producer.run_id / "samples" / "words.jsonl"
    try:
        said = read_beginning(path).rows()
    except OSError:
        return list(matches)
    if len(said) != len(matches):  # of other matches, or cut off
        return list(matches)
    return [
        {**row, "words": each.get("words", ())} for row, each in zip(matches, said, strict=True)
    ]


def _truth_says(levels: Row, score: object) -> str:
    """Whether the truth prefers the same answer as the judge; "" where it is not known."""
    model, baseline = levels.get("model"), levels.get("baseline")
    if model is None or baseline is None or not isinstance(score, int | float):
        return ""
    true, judged = (model > baseline) - (model < baseline), (score > 0.5) - (score < 0.5)
    if true == judged:
        return "the truth agrees"
    return "by the truth they are equal" if true == 0 else "the truth disagrees"


def _differs(row: Row) -> bool:
    """Whether one model gave what was asked for, and the other did not."""
    hits = [bool(row[slot].get("hit")) for slot in SLOTS if slot in row]
    return len(set(hits)) > 1


def _margin(row: Row) -> float:
    return float(sum(row["margins"]))
