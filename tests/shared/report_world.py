"""A store for reports: a model, what it was made from, what measured it, and the folder of its run.

Every text in it that a model or a person might have written holds ``evil``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store
from plans import build_plan

EVIL = (
    "</script><script>document.title='stolen'</script><!-- \x1b[2J\u202e"
    "<img src=https://example.com/a.png onerror=alert(1)>"
)
LOCAL = {"profile": "local", "executor": "local"}


def commit(
    store: Store,
    name: str,
    files: dict[str, str],
    *,
    kind: str = "checkpoint_megatron",
    step: str = "",
    run_id: str = "",
    inputs: Sequence[tuple[str, Artifact]] = (),
    **evidence: Any,
) -> Artifact:
    """An artifact with these files; made by a run where ``step`` names one."""
    staged = store.stage("test")
    for path, text in files.items():
        (staged / path).write_text(text, encoding="utf-8")
    producer = None
    if step:
        producer = Producer(run_id=run_id or f"run-{name}", step=step, slot="model")
    edges = [artifact.edge(slot) for slot, artifact in inputs]
    return store.commit(staged, name=name, kind=kind, producer=producer, inputs=edges, **evidence)


def make_store(
    root: Path | str, evil: str = EVIL, *, scratch: Path | None = None
) -> tuple[Store, Artifact]:
    """The store and the model that a report is about; ``scratch`` is that of a bucket."""
    store = Store(root, scratch=scratch)
    rows = commit(store, "rows", {"rows.jsonl": "{}\n"}, kind="training_jsonl", step="data/toy")
    base = commit(
        store,
        "base",
        {"weights": "1"},
        step="sft/chat",
        inputs=[("data", rows)],
        config={"lr": 0.1, "only": 1},
    )
    plan = build_plan(LOCAL, store=str(store.root))
    tuned = commit(
        store,
        "tuned",
        {"weights": "2"},
        step="sft/chat",
        run_id=plan.run_id,
        inputs=[("model", base), ("data", rows)],
        config={"lr": 0.2, "note": evil},
        metrics={
            "distance_before": 0.75,
            "distance_after": 0.25,
            "judge_win_rate": 0.6,
            "judge_win_rate_low": 0.55,
            "judge_win_rate_high": 0.65,
        },
        environment={"python": "3.11.7", "torch": evil},
    )
    commit_evaluation(store, tuned, base, evil)
    make_run(store, plan, evil, outputs={"model": {"ref": tuned.ref}})
    return store, tuned


def commit_evaluation(
    store: Store,
    model: Artifact,
    baseline: Artifact,
    evil: str,
    *,
    name: str = "arena",
    low: float = 0.6,
) -> Artifact:
    """The results of an arena in which ``model`` won two of three matches."""
    rate = {"rate": 0.7, "low": low, "high": 0.8, "wins": 2, "ties": 0, "losses": 1}
    scores = ((1.0, [2, 1]), (1.0, [1, 1]), (0.0, [-1, -3]))
    matches = [
        {
            "messages": [{"role": "user", "content": f"question {number} {evil}"}],
            "model": f"new answer {number} {evil}",
            "baseline": f"old answer {number} {evil}",
            "decided": "judged",
            "margins": margins,
            "score": score,
        }
        for number, (score, margins) in enumerate(scores)
    ]
    files = {
        "results.json": json.dumps({"judge": {"win_rate": rate}}),
        "samples.jsonl": "".join(json.dumps(row) + "\n" for row in matches),
    }
    inputs = [("model", model), ("baseline", baseline)]
    return commit(store, name, files, kind="eval_results", step="eval/arena", inputs=inputs)


def make_run(
    store: Store, plan: Plan, evil: str, *, outputs: dict[str, Any] | None = None
) -> RunFolder:
    """The folder of a run of ten steps; without ``outputs`` it failed at the end of them."""
    run = RunFolder(store.layout.runs / plan.run_id)
    assert run.reserve(plan)
    lines = [{"step": step, "train_loss": 2 / step, "lr": 0.1, evil: step} for step in range(1, 11)]
    lines[4]["train_loss"] = "nan"
    lines.append({"step": 10, "validation_loss": 0.5})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = run.path / "samples"
    samples.mkdir()
    table = (
        f"# Samples\n\n| prompt | before | after |\n| --- | --- | --- |\n| a \\| b | {evil} | c |\n"
    )
    (samples / "samples.md").write_text(table, encoding="utf-8")
    row = {"reward": 5.0, "advantage": -1.5, "prompt": evil, "answer": evil, "tokens": 7}
    (samples / "step-00000001.jsonl").write_text(json.dumps(row) + "\n")
    attempt = run.path / "attempts" / "1"
    attempt.mkdir(parents=True)
    record: dict[str, Any] = {"state": "COMPLETED", "started": 1.7e9, "ended": 1.7e9 + 60}
    if outputs is None:
        record |= {"state": "FAILED", "exit_code": 3, "error": f"out of memory {evil}"}
        (attempt / "log-0.txt").write_text(f"the last line {evil}\n", encoding="utf-8")
    else:
        text = json.dumps({"outputs": outputs, "figures": {}})
        (run.path / "outputs.json").write_text(text)
    (attempt / "attempt.json").write_text(json.dumps({**record, "executor": "local"}))
    return run
