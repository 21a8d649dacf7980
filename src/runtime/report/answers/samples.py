"""What reinforcement learning or rejection sampling saw at its first and at its last step.

``samples/step-00000001.jsonl`` has the best and the worst samples of a step, and one group of
samples of the same prompt, whose rows are marked by ``whole_group``, its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nemotron_style.runtime.report.answers.table import (
    BY_ADVANTAGE,
    BY_LOSS,
    AnswerRow,
    Cell,
    Remark,
    Row,
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

MOST_ROWS = 24
"""Of a file that are read; it has sixteen at most."""


def read_steps(run: RunFolder) -> Iterator[Table]:
    """Tables of the last step first: that is what the model does now."""
    files = sorted((run.path / "samples").glob("step-*.jsonl"))
    for path, word in reversed([(each, _name(each, files)) for each in _ends(files)]):
        try:
            rows = read_beginning(path).rows(MOST_ROWS)
        except OSError:
            continue
        step = int(path.stem.rpartition("-")[2])
        scale = max((abs(as_number(row.get("advantage"))) for row in rows), default=0.0)
        group = [row for row in rows if row.get("whole_group")]
        ranked = [row for row in rows if not row.get("whole_group")]
        if group:
            yield _show_group(run, group, word=word, step=step, scale=scale)
        if ranked:
            yield _show_ranked(run, ranked, word=word, step=step, scale=scale)


def _show_group(
    run: RunFolder, rows: Sequence[Row], *, word: str, step: int, scale: float
) -> Table:
    """One prompt and its samples, the best first: what they are compared with is each other."""
    size = int(as_number(rows[0].get("whole_group")))
    kept = sum(bool(row.get("kept")) for row in rows)
    part = f"All {size}" if size == len(rows) else f"The best and the worst of {size}"
    note = f"{part} samples of the prompt on which their rewards differed most at that step."
    if _keeps(rows):
        note += f" {kept} kept: it is trained on {'that one' if kept == 1 else 'those'} alone."
    return Table(
        f"A group of the {word} step ({step})",
        run.run_id,
        ("answer",),
        tuple(_show(row, scale, lead=_reward(row), judge=True) for row in rows),
        note,
        first="reward",
        prompt=cut_text(rows[0].get("prompt", "")),
        legend=_legend(rows),
    )


def _show_ranked(
    run: RunFolder, rows: Sequence[Row], *, word: str, step: int, scale: float
) -> Table:
    note = "The best and the worst samples of that step, the best first."
    shown = tuple(_show(row, scale, lead=cut_text(row.get("prompt", ""))) for row in rows)
    title = f"Sampled at the {word} step ({step})"
    return Table(title, run.run_id, ("answer",), shown, note, legend=_legend(rows))


def _show(row: Row, scale: float, *, lead: str, judge: bool = False) -> AnswerRow:
    """A sample: its text in the colour of its advantage, or of whether it is trained on."""
    text = show_answer(row.get("answer", row.get("response", "")))
    advantage = row.get("advantage")
    notes = [] if judge else [f"reward {_reward(row)}"]
    if advantage is not None:
        notes.append(f"advantage {signed(as_number(advantage))}")
    notes += [name_attributes(row["attributes"])] if row.get("attributes") else []
    notes += [f"{row['tokens']} tokens"] if "tokens" in row else []
    notes += ["kept"] if row.get("kept") else ["not kept"] if "kept" in row else []
    notes += ["cut off"] if row.get("truncated") or row.get("finished") is False else []
    return AnswerRow(
        lead,
        (
            Cell(
                text,
                tuple(notes),
                strength=shade(as_number(advantage), scale) if advantage is not None else 0,
                pieces=((text, bool(row["kept"])),) if "kept" in row else (),
                remarks=tuple(_remarks(row.get("judged"))) if judge else (),
            ),
        ),
    )


def _remarks(judged: object) -> Iterator[Remark]:
    """What the judge said of a sample beside another one."""
    for own, other, each in read_judged(judged):
        against = cut_text(each.get("against", ""))
        words = cut_text(each.get("words", ""))
        yield Remark(f"{own} against {other} for “{against}”", words)


def _legend(rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    if _keeps(rows):
        return BY_LOSS
    return BY_ADVANTAGE if any(row.get("advantage") for row in rows) else ()


def _keeps(rows: Sequence[Row]) -> bool:
    """Whether some samples are kept and the others left out, as rejection sampling does."""
    return any("kept" in row for row in rows)


def _reward(row: Row) -> str:
    return format_number(as_number(row.get("reward")))


def _ends(files: Sequence[Path]) -> list[Path]:
    return [*files[:1], *files[1:][-1:]]


def _name(path: Path, files: Sequence[Path]) -> str:
    return "first" if path is files[0] else "last"
