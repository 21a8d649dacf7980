"""``nemotron-style report``, and ``artifacts verify`` of one, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.store.record import Artifact
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
