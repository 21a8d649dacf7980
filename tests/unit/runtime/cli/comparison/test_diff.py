"""``artifacts diff``: why two artifacts differ, before in what."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.snapshot import plan_snapshot, write_snapshot
from nemotron_style.runtime.store.record import Artifact, Producer
from nemotron_style.runtime.store.store import Store

Run = Callable[..., str]


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> str:
        assert main(["artifacts", "diff", *words]) == 0
        return capsys.readouterr().out

    return call


def make(store: Store, name: str, files: dict[str, str], **record: Any) -> Artifact:
    staged = store.stage("test")
    for path, text in files.items():
        (staged / path).write_text(text)
    return store.commit(staged, name=name, kind="stone", **record)


def test_what_makes_the_difference_stands_before_what_it_makes(store: Store, diff: Run) -> None:
    (store.root.parent / "rows.jsonl").write_text("{}\n")
    data = store.adopt(store.root.parent / "rows.jsonl", kind="stone", name="data")
    for number, lr in ((1, 0.1), (2, 0.2)):
        make(
            store,
            "sft",
            {"results.json": json.dumps({"right": number})},
            producer=Producer(run_id=f"sft-{number}", step="sft/chat", slot="model"),
            inputs=[data.edge("data" if number == 1 else "validation")],
            config={"optim": {"lr": lr}, "seed": number},
            seeds={"seed": number},
            environment={"torch": f"2.{number}"},
            metrics={"loss": 2.0 / number, "name": "x"},
            facts={"note": f"a {number}"},
        )
    out = diff("sft:v1", "sft:v2")
    digest = data.digest.removeprefix("sha256:")[:8]
    assert out.splitlines() == [
        "sft:v1 -> sft:v2",
        "1 of 1 files differ",
        "",
        "Config",
        "  KEY       sft:v1  sft:v2",
        "  optim.lr  0.1     0.2",
        "  seed      1       2",
        "",
        "Inputs",
        "  KEY         sft:v1            sft:v2",
        f"  data        data:v1 {digest}  -",
        f"  validation  -                 data:v1 {digest}",
        "",
        "Environment and hardware",
        "  KEY    sft:v1  sft:v2",
        "  torch  2.1     2.2",
        "",
        "Metrics",
        "  KEY   sft:v1  sft:v2  CHANGE",
        "  loss  2       1       -1 (-50.0%)",
        "",
        "Facts",
        "  KEY   sft:v1  sft:v2",
        "  note  a 1     a 2",
        "",
        "Content",
        "  results.json: 1 key differs",
        "      right: 1 -> 2",
    ]
    told = json.loads(diff("sft:v1", "sft:v2", "--json"))
    assert {"key": "config.optim.lr", "left": 0.1, "right": 0.2} in told["differences"]
    assert told["bit_identical"] is False
    assert told["content"][0]["path"] == "results.json"
    same = diff("sft:v1", "sft:v1").splitlines()
    assert same == ["sft:v1 -> sft:v1", "no difference: the records are equal"]


def test_equal_bytes_and_equal_weights_are_told_from_equal_records(store: Store, diff: Run) -> None:
    def make_model(name: str, text: str, **record: Any) -> None:
        facts = {"weights_digest": "sha256:1"}
        make(store, name, {"weights": text, "config": "x"}, facts=facts, **record)

    make_model("a", "one", config={"seed": 1})
    make_model("b", "one", config={"seed": 2})
    make_model("c", "divided", config={"seed": 1})
    assert diff("a", "b").splitlines()[1] == "bit-identical: every byte of 2 files"
    assert json.loads(diff("a", "b", "--json"))["bit_identical"] is True
    told = diff("a", "c").splitlines()[1]
    assert told == "1 of 2 files differ; the weights are bit-identical"


def test_a_change_is_seen_in_whatever_key_it_hides(store: Store, diff: Run) -> None:
    configs: list[dict[str, Any]] = [
        {"w.help": 1},
        {"w": {"help": 1}},
        {"w": {"help": True}},
        {"w": {"help": None}},
        {"w": {}},
    ]
    for number, config in enumerate(configs):
        make(store, f"tree{number}", {"a": "x"}, config=config)
    for number in range(1, len(configs)):
        told = json.loads(diff(f"tree{number - 1}", f"tree{number}", "--json"))["differences"]
        assert told
        assert all(str(one["left"]) != str(one["right"]) for one in told)


def test_code_is_compared_where_both_copies_are_at_hand(mill: Any, diff: Run) -> None:
    source = mill.root / "code/milling/recipe.py"
    for number in (1, 2):
        if number == 2:
            source.write_text(source.read_text().replace("total = 0, 0", "total = 0, 1"))
        plan = mill.compile("mill/grow").target.plan
        copy = plan_snapshot(mill.home, plan.entrypoint, plan.config_class)
        write_snapshot(copy, plan.entrypoint, plan.config_class)
        assert RunFolder(plan.record_dir).reserve(plan.model_copy(update={"snapshot": copy}))
        make(
            mill.store,
            "sack",
            {"a": str(number)},
            producer=Producer(run_id=plan.run_id, step=plan.step, slot="sack"),
            code={"digest": plan.identity["code"]},
        )
    lines = diff("sack:v1", "sack:v2").splitlines()
    assert "  milling/recipe.py  +1 -1 lines" in lines
    assert "    -    step, total = 0, 0" in lines
    assert "    +    step, total = 0, 1" in lines
    [change] = json.loads(diff("sack:v1", "sack:v2", "--json"))["code"]
    assert change["name"] == "milling/recipe.py"

    run_id = mill.store.resolve("sack:v1").record.producer.run_id
    (mill.home / "runs" / run_id / "plan.json").unlink()
    assert "which files: not known, the code of one of the two" in diff("sack:v1", "sack:v2")
