"""``nemotron-style artifacts`` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.cli.artifacts import Format
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.store.lineage.formats import FORMATS
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store
from plans import build_plan

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str, str]:
        code = main(["artifacts", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture
def model(store: Store, tmp_path: Path) -> Artifact:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    data = store.adopt(tmp_path / "rows.jsonl", kind="raw_jsonl", name="data")
    return make(store, data, lr=0.1)


def make(store: Store, data: Artifact, *, lr: float) -> Artifact:
    staged = store.stage("test")
    (staged / "weights").write_text(str(lr))
    producer = Producer(run_id=f"sft-chat-{lr}", step="sft/chat", slot="model", config_name="tiny")
    return store.commit(
        staged,
        name="sft",
        kind="checkpoint_megatron",
        producer=producer,
        inputs=[data.edge("data")],
        config={"optim": {"lr": lr}},
        facts={"canary": "ok"},
    )


def read_json(run: Run, *words: str) -> Any:
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_list(run: Run, model: Artifact) -> None:
    code, out, _ = run("list")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["REF", "KIND", "DIGEST", "SIZE", "AGE", "MADE", "BY"]
    assert [line.split()[0] for line in lines[1:]] == ["data:v1", "sft:v1"]
    assert lines[1].endswith("  3 B   just now  adopted")
    assert lines[2].endswith("sft/chat@tiny")
    told = read_json(run, "list", "--kind", "checkpoint_megatron")
    assert [each["ref"] for each in told] == ["sft:v1"]
    assert told[0]["digest"] == model.digest
    assert [each["ref"] for each in read_json(run, "list", "data")] == ["data:v1"]


def test_a_list_of_a_kind_without_artifacts_says_so_and_a_slip_is_refused(
    run: Run, model: Artifact
) -> None:
    code, out, _ = run("list", "--kind", "judge_model")
    assert (code, out.partition(" in ")[0]) == (0, "no artifacts of kind judge_model")
    code, _, err = run("list", "--kind", "trainin_jsonl")
    assert (code, "did you mean 'training_jsonl'" in err) == (2, True)


def test_an_empty_store(run: Run, store: Store) -> None:
    assert run("list")[1] == f"no artifacts in {store.root}; run a step, or adopt something\n"
    assert read_json(run, "list") == []
    code, out, err = run("verify")
    assert (code, out) == (1, "0 checked, 1 problems\n")
    assert f"{store.root}: there is no store here; is it mounted?" in err
    assert run("gc")[0] == 0
    assert not store.root.exists()
    (store.root / "runs").mkdir(parents=True)
    assert read_json(run, "verify") == {"checked": 0, "ok": True, "problems": []}


def test_show(run: Run, model: Artifact) -> None:
    _, out, _ = run("show", "sft")
    for part in (model.digest, str(model.path), "sft/chat@tiny (sft-chat-0.1)", "  data  data:v1"):
        assert part in out
    assert "config:\n  optim.lr  0.1\n" in out
    assert "facts:\n  canary  ok\n" in out
    assert "files (3 B):\n  weights  3 B\n" in out
    told = read_json(run, "show", model.digest[:20])
    assert told["ref"] == "sft:v1"
    assert told["config"] == {"optim": {"lr": 0.1}}


def test_lineage_in_a_file_and_no_deeper_than_asked(
    run: Run, model: Artifact, tmp_path: Path
) -> None:
    cut = run("lineage", "sft", "--depth", "0")[1]
    assert "more beyond this depth" in cut.splitlines()[0]
    assert "data:v1" not in cut
    file = tmp_path / "out" / "lineage.txt"
    assert run("lineage", "sft", "-f", "dot", "-o", str(file)) == (0, "", "")
    assert file.read_text() == run("lineage", "sft", "-f", "dot")[1]
    assert run("lineage", "sft", "-o", str(tmp_path))[0] == 2
    assert run("lineage", "sft", "--depth", "-1")[0] == 2


def test_every_format_of_a_lineage_can_be_asked_for() -> None:
    assert {one.value for one in Format} == set(FORMATS)


def test_lineage(run: Run, model: Artifact) -> None:
    assert "└── data: data:v1" in run("lineage", "sft")[1]
    assert "└── data: sft:v1" in run("lineage", "data", "--down")[1]
    assert len(read_json(run, "lineage", "sft")["nodes"]) == 2
    assert run("lineage", "sft", "--format", "dot")[1].startswith("digraph")
    assert run("lineage", "sft", "--format", "mermaid")[1].startswith("flowchart")
    assert json.loads(run("lineage", "sft", "--format", "json")[1])["root"] == "sft:v1"
    assert read_json(run, "lineage", "sft", "--format", "openlineage")[0]["eventType"] == "START"
    code, _, err = run("lineage", "sft", "--format", "png")
    assert code == 2
    assert "png" in err


def test_verify_tells_every_damage_and_fails(run: Run, store: Store, model: Artifact) -> None:
    assert run("verify")[:2] == (0, "2 checked, 0 problems\n")
    (model.path / "weights").chmod(0o644)
    (model.path / "weights").write_text("0.2")
    code, out, err = run("verify")
    assert (code, out) == (1, "2 checked, 1 problems\n")
    assert "sft:v1: weights: has other content" in err
    code, out, _ = run("verify", "sft", "--json")
    assert code == 1
    assert json.loads(out)["problems"][0]["key"] == "weights"
    assert run("verify", "data", "--shallow")[0] == 0


def test_verify_tells_lost_keys_and_gc_writes_them(run: Run, store: Store, model: Artifact) -> None:
    (store.layout.digest(model.digest) / "sft@v1").unlink()
    code, _, err = run("verify", "sft")
    assert code == 1
    assert "artifacts gc" in err
    assert read_json(run, "gc")["keys_written"] == 1
    assert run("verify")[0] == 0


def test_adopt(run: Run, store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    code, out, _ = run("adopt", "rows.jsonl", "--kind", "raw_jsonl", "--name", "data")
    assert code == 0
    assert out.startswith("data:v1  raw_jsonl  sha256:")
    told = read_json(run, "adopt", "./rows.jsonl", "--kind", "raw_jsonl", "--name", "data")
    assert told["ref"] == "data:v1"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("show", "sfd"), "did you mean 'sft'"),
        (("show", "../sft"), "artifact name"),
        (("adopt", "absent", "--kind", "raw_jsonl", "--name", "x"), "no such file"),
        (("adopt", "rows.jsonl", "--kind", "raw_jsonll", "--name", "x"), "raw_jsonl"),
        (("adopt", "rows.jsonl", "--kind", "raw_jsonl", "--name", "X"), "artifact name"),
        (("--profile", "nowhere", "list"), "nowhere"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    run: Run, model: Artifact, words: tuple[str, ...], told: str
) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_gc_tells_what_it_removed(run: Run, store: Store, model: Artifact) -> None:
    staged = store.stage("left")
    (staged / "a").write_text("x")
    assert read_json(run, "gc")["removed"] == []
    _, out, _ = run("gc", "--grace", "0")
    assert out == (
        f"removed staging/{staged.name}\n1 removed (1 B), 0 finished, 0 keys written again\n"
    )
    assert store.verify(model, deep=True) == []


@pytest.mark.parametrize("hours", ["-1", "nan", "inf"])
def test_gc_takes_a_number_of_hours_alone(run: Run, store: Store, hours: str) -> None:
    left = store.stage("left")  # younger than NaN, if one compares carelessly
    assert run("gc", "--grace", hours)[0] == 2
    assert left.exists()


def test_rm_shows_what_would_go_and_does_it_when_told_to(
    run: Run, store: Store, model: Artifact
) -> None:
    code, out, _ = run("rm", "sft")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["REF", "sft:v1", "1"]
    assert out.splitlines()[1].endswith("  goes")
    assert "would go" in out
    assert "--yes removes them" in out
    assert store.resolve("sft")
    told = read_json(run, "rm", "sft")
    assert told["dry_run"]
    assert told["removed"] == []
    done = read_json(run, "rm", "sft", "--yes")
    assert (done["removed"], done["freed"]) == (["sft:v1"], told["would_free"])
    code, _, err = run("show", "sft")
    assert code == 2
    assert "sft:v1: was removed by " in err
    assert "steps run sft/chat -c tiny" in err
    code, out, _ = run("show", "sft:v1")
    assert code == 0
    assert "was removed by " in out
    assert "data:v1" in run("lineage", "sft:v1")[1]
    assert [each["ref"] for each in read_json(run, "list")] == ["data:v1"]
    assert run("verify")[0] == 0
    assert run("rm", "data", "--yes")[0] == 0


def test_rm_keeps_what_others_were_made_from(run: Run, store: Store, model: Artifact) -> None:
    make(store, store.resolve("data"), lr=0.2)
    code, out, err = run("rm", "data", "--yes")
    assert (code, out) == (2, "")
    assert "data:v1: stays; got sft:v2 was made from it; remove with it what was made" in err
    assert err.endswith("nobody needs that: sft:v1, sft:v2\n")
    assert run("rm", "data", "sft:v1", "sft", "--yes")[0] == 0
    assert read_json(run, "list") == []


def test_gc_keeps_what_is_named_and_what_that_was_made_from(
    run: Run, store: Store, model: Artifact
) -> None:
    make(store, store.resolve("data"), lr=0.2)
    code, out, _ = run("gc", "--keep", "sft:v1")
    lines = out.splitlines()
    assert code == 0
    assert lines[1].startswith("sft:v2")
    assert lines[2].split() == ["data:v1", "stays:", "sft:v1", "was", "made", "from", "it"]
    assert lines[3].split() == ["sft:v1", "stays:", "--keep"]
    assert lines[4].startswith("1 would go (")
    assert lines[4].endswith("2 stay; --yes removes them")
    assert len(read_json(run, "list")) == 3
    assert read_json(run, "gc", "--keep", "sft:v1", "--yes")["removed"] == ["sft:v2"]
    assert run("gc", "--yes")[0] == 2


def test_what_a_run_under_way_reads_stays(run: Run, store: Store, model: Artifact) -> None:
    begin_run(store, source="run:sft-chat-0.1/model")
    code, _, err = run("rm", "sft", "--yes")
    assert code == 2
    assert "sft:v1: stays; got sft-chat-" in err
    told = read_json(run, "gc", "--keep", "data")
    assert told["going"] == []
    assert told["staying"]["sft:v1"].endswith(" uses it: RUNNING")


def begin_run(store: Store, *, source: str) -> None:
    """A run with an attempt that is under way in this process."""
    inputs = ({"slot": "model", "kind": "checkpoint_megatron", "source": source},)
    usual = {"profile": "local", "executor": "local", "store": str(store.root)}
    plan = build_plan(usual, inputs=inputs)
    folder = RunFolder(plan.record_dir)
    folder.reserve(plan)
    attempt = folder.claim_attempt()
    assert attempt
    assert attempt.take_ownership()
