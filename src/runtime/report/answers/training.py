"""What a run wrote down about its own training, in the folder ``samples`` of the run.

``docs/report.md`` describes the files. Each of them may be missing, of an earlier version, or
damaged: then there is no table of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.report.answers.samples import read_steps
from nemotron_style.runtime.report.answers.table import (
    BY_LOSS,
    SHOWN,
    AnswerRow,
    Cell,
    Remark,
    Row,
    Share,
    Table,
    as_number,
    cut_text,
    name_attributes,
    read_judged,
    shade,
    show_answer,
    signed,
)
from nemotron_style.runtime.report.evidence import read_beginning
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.units import format_number

MOST_GROUPS = 3
SIDES = ("at the start", "after training")


def read_run_answers(run: RunFolder) -> list[Table]:
    """Held-out answers before and after, what was sampled, and what the loss counted."""
    found = [_read_held_out(run), *_read_weights(run), *read_steps(run)]
    return [table for table in (*found, _read_before_after(run), _read_loss_mask(run)) if table]


def _read_held_out(run: RunFolder) -> Table | None:
    """The last ``validation-*.jsonl``: held-out prompts, answered at the start and then."""
    files = sorted((run.path / "samples").glob("validation-*.jsonl"))
    rows = _read_rows(files[-1]) if files else []
    rows = [row for row in rows if {"prompt", "before", "after"} <= row.keys()]
    if not rows:
        return None
    step = int(files[-1].stem.rpartition("-")[2])
    judge = "the judge" if "judged" in rows[0] else "the reward"
    note = f"Held-out prompts, answered at the start and after {step} steps: where {judge} saw the "
    note += "largest gains, and where the smallest or a loss."
    heads = ("at the start", f"after {step} steps")
    return Table("Held out", run.run_id, heads, tuple(map(_held_out, rows)), note)


def _held_out(row: Row) -> AnswerRow:
    rewards, truth = row.get("rewards"), row.get("truth")
    cells = []
    gain = as_number(row.get("margin"))
    if isinstance(rewards, list) and len(rewards) == 2:
        gain = as_number(rewards[1]) - as_number(rewards[0])
    for at, text in enumerate((row["before"], row["after"])):
        notes = []
        if isinstance(rewards, list) and at < len(rewards):
            notes.append(f"reward {format_number(as_number(rewards[at]))}")
        if isinstance(truth, list) and at < len(truth):
            notes.append(f"truly {name_attributes(truth[at])}")
        wins = gain > 0 if at else gain < 0
        cells.append(Cell(show_answer(text), tuple(notes), "better" if wins else ""))
    words = ("reward fell", "reward rose") if rewards else ("earlier preferred", "later preferred")
    unit = "" if rewards else " points, the mean of both orders"
    return AnswerRow(
        cut_text(row["prompt"]),
        tuple(cells),
        words[gain > 0] if gain else "equal",
        "better" if gain > 0 else "worse" if gain < 0 else "",
        f"{signed(gain)}{unit}",
        tuple(_remarks(row.get("judged"))),
    )


def _remarks(judged: object) -> Iterator[Remark]:
    """What a judge said of a pair: the scores of the later and of the earlier answer, and why."""
    for own, other, each in read_judged(judged):
        first = "later" if each.get("shown") == "first" else "earlier"
        head = f"later {own}, earlier {other}; the {first} one was shown first"
        yield Remark(head, cut_text(each.get("words", "")))


def _read_weights(run: RunFolder) -> Iterator[Table]:
    """``weights.json``: groups of responses, their target weights, and the shares of the model."""
    kept = _read_json(run.path / "samples" / "weights.json")
    groups, shares = (kept.get(key) if isinstance(kept, Mapping) else None for key in _WEIGHTS)
    if not isinstance(groups, list) or not isinstance(shares, Mapping) or not shares:
        return
    steps = sorted(shares, key=lambda step: as_number(int(step)) if step.isdigit() else 0.0)
    for number, group in enumerate(groups[:MOST_GROUPS]):
        try:
            rows = _weighted(group, *([shares[step][number] for step in (steps[0], steps[-1])]))
        except (IndexError, KeyError, TypeError, ValueError):
            return
        note = (
            "Responses to one held-out prompt. The target is the weight w that a model which "
            "follows the label would give each; below it the share b of the model at the start "
            f"and after {steps[-1]} steps. Training is good where b moves to w."
        )
        legend = (("ap2", "w is above b at the start: raised"), ("an2", "w is below b: lowered"))
        yield Table(
            f"Weights of held-out group {number + 1}",
            run.run_id,
            ("response",),
            tuple(rows),
            note,
            first="w - b at the start",
            prompt=cut_text(group["prompt"]),
            legend=legend,
        )


_WEIGHTS = ("groups", "shares")


def _weighted(
    group: Mapping[str, Any], before: Sequence[float], after: Sequence[float]
) -> list[AnswerRow]:
    """A row a response, the heaviest first, coloured by how the loss moves it at the start."""
    found = list(zip(group["responses"], group["weights"], before, after, strict=True))
    scale = max(abs(weight - share) for _, weight, share, _ in found)
    rows = []
    for text, weight, start, end in sorted(found, key=lambda each: -each[1]):
        shares = (Share("target w", weight), Share("b at the start", start), Share("b after", end))
        cell = Cell(cut_text(text), strength=shade(weight - start, scale), shares=shares)
        rows.append(AnswerRow(f"{weight - start:+.3f}", (cell,)))
    return rows


def _read_before_after(run: RunFolder) -> Table | None:
    """The table that a run leaves in ``samples/samples.md``."""
    table = _read_markdown(run.path / "samples" / "samples.md")
    if len(table) < 2 or len(table[0]) < 2:
        return None
    heads, *rows = table
    shown = [
        AnswerRow(cut_text(row[0]), tuple(Cell(cut_text(cell)) for cell in row[1:]))
        for row in rows
        if len(row) == len(heads)
    ]
    note = f"The same prompts before and after training, without chance; {len(shown)} of them."
    return Table("Before and after", run.run_id, tuple(heads[1:]), tuple(shown[:SHOWN]), note)


def _read_loss_mask(run: RunFolder) -> Table | None:
    """``loss_mask.json``: rows of training data, with what of them the loss counts."""
    rows = _read_json(run.path / "samples" / "loss_mask.json")
    try:
        cells = [
            Cell("", pieces=tuple((cut_text(text), bool(counts)) for text, counts in row))
            for row in rows[:SHOWN]
        ]
    except (ValueError, TypeError, KeyError):
        return None
    shown = tuple(AnswerRow(str(number), (cell,)) for number, cell in enumerate(cells, 1))
    note = "The first rows that it was trained on."
    return Table("Trained on", run.run_id, ("text",), shown, note, first="row", legend=BY_LOSS)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_beginning(path).rows(SHOWN)
    except OSError:
        return []


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_beginning(path).data)
    except (OSError, ValueError, RecursionError):
        return None


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
