"""``nemotron-style report``, and ``artifacts verify`` of one, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from report_world import make_store


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return make_store(tmp_path / "store")[1]


def test_a_report_is_one_file_that_can_be_verified(tuned, tmp_path, capsys):
    assert main(["report", "tuned"]) == 0
    assert capsys.readouterr().out == "tuned-v1.html\n"
    path = tmp_path / "tuned-v1.html"
    assert path.stat().st_size < 200_000
    assert main(["artifacts", "verify", "tuned-v1.html"]) == 0
    assert "6 checked, 0 problems" in capsys.readouterr().out
    path.write_text(path.read_text().replace("old answer", "bad answer", 1))
    assert main(["artifacts", "verify", "tuned-v1.html", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in told["parts"] if part["state"] == "changed"] == [path.name]


def test_a_page_or_a_store_that_is_not_there_is_said_to_be_so(tuned, tmp_path, monkeypatch, capsys):
    assert main(["report", "tuned"]) == 0
    assert main(["artifacts", "verify", "./gone.html"]) == 2
    assert "gone.html: there is no such file" in capsys.readouterr().err
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(tmp_path / "nowhere"))
    assert main(["artifacts", "verify", "tuned-v1.html"]) == 2
    assert "nowhere: there is no store here" in capsys.readouterr().err


def test_a_run_has_a_report_and_it_goes_where_it_is_told_to(tuned, tmp_path, capsys):
    run_id = tuned.record.producer.run_id
    (tmp_path / "pages").mkdir()
    assert main(["report", "latest", "-o", "pages"]) == 0
    assert main(["report", run_id, "-o", "run.html", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert told == {"report": str(tmp_path / "run.html"), "bytes": told["bytes"], "problems": []}
    assert (tmp_path / "pages" / "tuned-v1.html").read_bytes() == (
        tmp_path / "run.html"
    ).read_bytes()


def test_what_another_project_made_has_a_report_too(tuned, tmp_path, capsys):
    (tmp_path / "text").write_text("theirs")
    Store(tmp_path / "store").adopt(tmp_path / "text", kind="their_kind", name="theirs")
    assert main(["report", "theirs"]) == 0
    assert "their_kind" in (tmp_path / "theirs-v1.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no such artifact"),
        (["../../etc/passwd"], "no such run"),
        ([], "about one artifact or run; got none"),
        (["tuned", "base"], "about one artifact or run; got tuned base"),
        (["tuned", "-o", "page.pdf"], "call it page.pdf.html"),
        (["tuned", "-o", "nowhere/\0/page.html"], "null"),
        (["tuned", "-o", "store/artifacts/tuned/v1/weights/page.html"], "cannot be written"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(words, said, tuned, capsys):
    assert main(["report", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "Traceback" not in told.err


def test_several_stand_side_by_side_on_a_page_that_can_be_verified(tuned, capsys):
    assert main(["report", "--compare", "base", "tuned", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["comparison"]["subjects"] == {"A": "base:v1", "B": "tuned:v1"}
    assert {row["key"] for row in told["comparison"]["differences"]["Config"]} >= {"lr", "only"}
    assert main(["artifacts", "verify", "comparison.html"]) == 0
    assert ", 0 problems" in capsys.readouterr().out


def test_a_store_has_an_index_that_can_be_verified(tuned, tmp_path, capsys):
    assert main(["report", "--store", "-o", "all.html"]) == 0
    assert capsys.readouterr().out == "all.html\n"
    assert "tuned:v1" in (tmp_path / "all.html").read_text()
    assert main(["artifacts", "verify", "all.html"]) == 0
    assert ", 0 problems" in capsys.readouterr().out


def test_what_cannot_be_compared_or_indexed_is_told_in_a_sentence(tuned, capsys):
    for words, said in (
        (["--compare", "tuned"], "allowed: 2 to 8 artifacts or runs"),
        (["--compare", "tuned", "tuned:v1"], "is named twice"),
        (["--compare", "tuned", "nothing"], "no such artifact"),
        (["--store", "tuned"], "an index is about the whole store"),
        (["--store", "--compare"], "an index is about the whole store"),
    ):
        assert main(["report", *words]) == 2
        assert said in capsys.readouterr().err
