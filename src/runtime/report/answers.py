"""Answers side by side: to the same prompt, by what something was made from and by what it is.

They come from whoever wrote them down: an evaluation (every answer, with the verdict of a judge or
of the truth), the samples that a run took before and after training, and what reinforcement
learning or rejection sampling saw at its first and its last step (with reward and advantage).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.report.evidence import read_beginning, read_file
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.secrets.redact import redact
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.units import format_number

SHOWN = 12
"""Rows of a table."""
MOST_TEXT = 2000
"""Characters of a prompt or an answer."""
CUT = " […]"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One answer, cut to :data:`MOST_TEXT`; ``tone`` is ``better``, ``worse`` or "".

    ``strength`` from -3 to 3 colours the text by the advantage of its tokens. ``pieces`` are its
    tokens, each with whether the loss counts it.
    """

    text: str
    notes: tuple[str, ...] = ()
    tone: str = ""
    strength: int = 0
    pieces: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A prompt and the answers to it; ``verdict`` is who was preferred, in words."""

    prompt: str
    cells: tuple[Cell, ...]
    verdict: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Answers of one source; ``heads`` name the columns of answers, ``note`` what was chosen."""

    title: str
    source: str
    heads: tuple[str, ...]
    rows: tuple[Comparison, ...]
    note: str

    @property
    def has_verdicts(self) -> bool:
        """Whether a column says who was preferred."""
        return any(row.verdict for row in self.rows)


def read_evaluation_answers(store: Store, evaluation: Artifact) -> list[Table]:
    """The answers in ``samples.jsonl`` of an evaluation.

    Raises ArtifactError when the file is not the one that was committed.
    """
    content = read_file(store, evaluation, "samples.jsonl")
    rows = content.rows() if content else []
    slots = {edge.slot: edge.ref for edge in evaluation.record.inputs}
    heads = tuple(slots.get(slot, slot) for slot in ("baseline", "model"))
    total = f"{len(rows)}" if content and content.whole else f"the first {len(rows)}"
    matches = [row for row in rows if {"model", "baseline", "margins"} <= row.keys()]
    labelled = [row for row in rows if {"label", "turns", "model"} <= row.keys()]
    if matches:
        chosen, note = choose_matches(matches, total)
        return [Table("Matches", evaluation.ref, heads, tuple(map(_match, chosen)), note)]
    if labelled:
        slots_shown = [slot for slot in ("baseline", "model") if slot in labelled[0]]
        shown, note = choose_labelled(labelled, total)
        heads = tuple(slots.get(slot, slot) for slot in slots_shown)
        cells = tuple(_labelled(row, slots_shown) for row in shown)
        return [Table("Asked for a label", evaluation.ref, heads, cells, note)]
    return []


def read_run_answers(run: RunFolder) -> list[Table]:
    """What a run wrote down: answers before and after, and samples of its first and last step."""
    return [*_read_before_after(run), *_read_steps(run), *_read_loss_mask(run)]


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
    """The first answer of each label; of many labels, some spread over all."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(str(row["label"]), row)
    labels = sorted(first)
    every = max(1, -(-len(labels) // SHOWN))
    shown = labels[::every]
    note = f"The first answer for {len(shown)} of {len(labels)} labels, of {total} rows."
    return [first[label] for label in shown], note


def shade(advantage: float, scale: float) -> int:
    """An advantage as one of seven shades, from -3 to 3; ``scale`` is the largest one shown."""
    if not (scale and advantage) or math.isnan(advantage):
        return 0
    size = max(1, min(3, round(3 * abs(advantage) / scale)))  # small ones have a sign too
    return size if advantage > 0 else -size


def cut_text(text: object) -> str:
    """A text without secrets, of at most :data:`MOST_TEXT` characters; it says where it was cut."""
    plain = redact(str(text))
    return plain if len(plain) <= MOST_TEXT else plain[:MOST_TEXT] + CUT


def _match(row: Row) -> Comparison:
    score, levels = row.get("score"), row.get("helpfulness") or {}
    cells = []
    for slot, wins in (("baseline", score is not None and score < 0.5), ("model", score == 1)):
        level = levels.get(slot)
        notes = () if level is None else (f"helpfulness {level} by the truth",)
        text = "(did not finish)" if row[slot] is None else cut_text(row[slot])
        cells.append(Cell(text, notes, "better" if wins else ""))
    margins = ", ".join(f"{margin + 0.0:+g}" for margin in row["margins"])
    words = {None: str(row.get("decided", "")), 0.5: "tie"}
    said = words.get(score, "model preferred" if score and score > 0.5 else "baseline preferred")
    tone = "" if score in words else "better" if score and score > 0.5 else "worse"
    verdict = f"{said} ({margins} in the two orders)" if margins else said
    return Comparison(cut_text(_last_message(row.get("messages"))), tuple(cells), verdict, tone)


def _labelled(row: Row, slots: Sequence[str]) -> Comparison:
    cells = []
    for slot in slots:
        answer = row[slot]
        attributes = answer.get("attributes") or {}
        has = ", ".join(f"{name} {value}" for name, value in attributes.items())
        hit = bool(answer.get("hit"))
        text = answer.get("value")
        notes = (f"{'✓' if hit else '✗'} {has}".strip(),)
        tone = "better" if hit else "worse"
        cells.append(Cell("(did not finish)" if text is None else cut_text(text), notes, tone))
    turns = row.get("turns") or [{}]
    prompt = f"{turns[-1].get('value', '')}\n[{row['label']}]"
    return Comparison(cut_text(prompt), tuple(cells))


def _read_before_after(run: RunFolder) -> Iterator[Table]:
    """The table that a run leaves in ``samples/samples.md``."""
    table = _read_markdown(run.path / "samples" / "samples.md")
    if len(table) < 2 or len(table[0]) < 2:
        return
    heads, *rows = table
    comparisons = [
        Comparison(cut_text(row[0]), tuple(Cell(cut_text(cell)) for cell in row[1:]))
        for row in rows
        if len(row) == len(heads)
    ]
    note = f"The same prompts before and after training, {len(comparisons)} of them."
    yield Table("Before and after", run.run_id, tuple(heads[1:]), tuple(comparisons[:SHOWN]), note)


def _read_steps(run: RunFolder) -> Iterator[Table]:
    """The best and the worst samples of the first and of the last step that wrote some."""
    files = sorted((run.path / "samples").glob("step-*.jsonl"))
    for path, word in ((each, "first" if each is files[0] else "last") for each in _ends(files)):
        try:
            rows = read_beginning(path).rows(SHOWN)
        except OSError:
            continue
        if not rows:
            continue
        step = int(path.stem.rpartition("-")[2])
        scale = max((abs(_number(row.get("advantage"))) for row in rows), default=0.0)
        cells = tuple(_step_row(row, scale) for row in rows)
        note = "The best and the worst samples of that step, the best first."
        if scale:
            note += " Coloured by advantage: what training made more likely, and what less."
        yield Table(f"Sampled at the {word} step ({step})", run.run_id, ("answer",), cells, note)


def _read_loss_mask(run: RunFolder) -> Iterator[Table]:
    """Rows of training data, with what of them the loss counts."""
    try:
        rows = json.loads(read_beginning(run.path / "samples" / "loss_mask.json").data)
        cells = [
            Cell("", pieces=tuple((cut_text(text), bool(counts)) for text, counts in row))
            for row in rows[:SHOWN]
        ]
    except (OSError, ValueError, TypeError, RecursionError):
        return
    shown = tuple(Comparison(f"row {number}", (cell,)) for number, cell in enumerate(cells, 1))
    note = "The first rows that it was trained on. Coloured: what the loss counts."
    yield Table("Trained on", run.run_id, ("text",), shown, note)


def _step_row(row: Row, scale: float) -> Comparison:
    text = row.get("answer", row.get("response", ""))
    notes = [f"reward {format_number(_number(row.get('reward')))}"]
    advantage = row.get("advantage")
    if advantage is not None:
        notes.append(f"advantage {format_number(_number(advantage))}")
    notes += [f"{row['tokens']} tokens"] if "tokens" in row else []
    notes += ["kept"] if row.get("kept") else []
    notes += ["cut off"] if row.get("truncated") or row.get("finished") is False else []
    strength = shade(_number(advantage), scale) if advantage is not None else 0
    cell = Cell(cut_text(text), tuple(notes), strength=strength)
    return Comparison(cut_text(row.get("prompt", "")), (cell,))


def _ends(files: Sequence[Path]) -> list[Path]:
    return [*files[:1], *files[1:][-1:]]


def _read_markdown(path: Path) -> list[list[str]]:
    """The head and the rows of the first Markdown table of a file, as this package writes them."""
    try:
        text = read_beginning(path, 1 << 20).data.decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line for line in text.split("\n") if line.startswith("| ")]
    rows = [re.split(r"(?<!\\) \| ", line[2:].removesuffix(" |")) for line in lines]
    return [
        [cell.replace("\\|", "|").strip() for cell in row]
        for number, row in enumerate(rows)
        if number != 1  # the rule below the heads
    ]


def _last_message(messages: object) -> str:
    last = messages[-1] if isinstance(messages, list) and messages else {}
    return str(last.get("content", "")) if isinstance(last, Mapping) else str(last)


def _margin(row: Row) -> float:
    return float(sum(row["margins"]))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
