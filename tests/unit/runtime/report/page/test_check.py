"""Whether a report is the one that was written, and its records those of a store, can be told."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.report.collect import collect_facts
from nemotron_style.runtime.report.document import render_report
from nemotron_style.runtime.report.page.check import check_report, read_documents
from nemotron_style.runtime.report.page.embed import make_document, render_data, seal_page
from nemotron_style.runtime.report.subject import describe_artifact
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.kept_run import note_outputs
from nemotron_style.runtime.store.store import Store
from report_world import commit, make_store


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store, a report of it, and where that lies. Who changes one of them writes a copy."""
    root = tmp_path_factory.mktemp("world")
    store, tuned = make_store(root / "store")
    text = render_report(collect_facts(store, describe_artifact(store, tuned)))
    path = root / "report.html"
    path.write_text(text)
    return store, text, path


def states(path, store) -> dict[str, str]:
    return {check.name: check.state for check in check_report(path, store)}


def test_a_report_of_a_store_is_the_same(world):
    store, _, path = world
    assert set(states(path, store).values()) == {"same"}
    assert len(states(path, store)) == 6


def test_a_changed_byte_anywhere_is_found(world, tmp_path):
    store, text, _ = world
    begin = text.index('id="data"')
    places = [text.index("<p class="), text.index("95% interval"), text.index("rows:v1", begin)]
    for place in places:
        changed = tmp_path / "changed.html"
        changed.write_text(f"{text[:place]}X{text[place + 1 :]}")
        found = states(changed, store)
        assert found["changed.html"] == "changed"
    assert "changed" in [state for name, state in found.items() if name != "changed.html"]


def test_a_record_that_was_forged_with_its_hash_and_seals_is_found_by_the_store(world, tmp_path):
    store, *_ = world
    other = Store(tmp_path / "other")
    forged = commit(other, "rows", {"rows.jsonl": "forged"}, kind="training_jsonl")
    text = (forged.path / "artifact.json").read_text()
    documents = [make_document("record", "rows:v1", text, forged.digest)]
    page = tmp_path / "forged.html"
    blank = f'<meta name="seal" content="{"0" * 64}">'
    data = render_data("rows:v1", documents)
    page.write_text(seal_page(f'{blank}<script id="data">{data}</script>'))
    assert states(page, store) == {"forged.html": "same", "rows:v1": "differs"}
    assert states(page, other) == {"forged.html": "same", "rows:v1": "same"}


def test_another_store_has_none_of_it(world, tmp_path):
    _, _, path = world
    found = states(path, Store(tmp_path / "other"))
    assert found.pop("report.html") == "same"
    assert set(found.values()) == {"not in this store"}


def test_a_removed_artifact_is_told_apart(world, tmp_path):
    store, tuned = make_store(tmp_path / "store")
    path = tmp_path / "report.html"
    path.write_text(render_report(collect_facts(store, describe_artifact(store, tuned))))
    arena = store.resolve("arena:v1")
    store.remove([arena.record], find_in_use=dict)
    assert states(path, store)["arena:v1"] == "removed"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<p>hello</p>", "holds no records that can be read"),
        ('<script id="data">{"documents": 1}</script>', "holds no records that can be read"),
        ('<script id="data">{"schema": 9, "documents": []}</script>', "another version"),
        ('<script id="data">{"schema": 1, "documents": [1]}</script>', "cannot be read"),
        ('<script id="data">{"schema": 1, "documents": [{}]}</script>', "cannot be read"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(text, what, tmp_path):
    path = tmp_path / "some.html"
    path.write_text(text)
    with pytest.raises(UsageError, match=what):
        check_report(path, Store(tmp_path))


HOSTILE = st.lists(
    st.sampled_from(("</script", "<!--", "-->", "]]>", "<script>", "\\u003c", "&lt;", "\u2028"))
    | st.text(st.characters(codec="utf-8"), max_size=4)
).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(HOSTILE, HOSTILE)
def test_any_text_comes_back_from_a_page_as_it_was(name, text):
    data = render_data(name, [make_document("record", name, text)])
    assert data.isascii()
    assert not re.search("[<>&]", data)
    page = f'<script type="application/json" id="data">{data}</script><p>after</p>'
    (found,) = read_documents(page, where="page")
    assert (found["name"], found["text"]) == (name, text)


def test_a_bucket_has_the_plans_of_runs_of_other_machines(tmp_path):
    store, tuned = make_store("memory://of-a-check", scratch=tmp_path / "here")
    run = RunFolder(store.layout.runs / tuned.record.producer.run_id)
    note_outputs(run.plan, store, {"outputs": {"model": {"ref": tuned.ref}}, "figures": {}})
    own = render_report(collect_facts(store, describe_artifact(store, tuned)))
    elsewhere = Store("memory://of-a-check", scratch=tmp_path / "there")
    page = tmp_path / "report.html"
    page.write_text(render_report(collect_facts(elsewhere, describe_artifact(elsewhere, tuned))))
    assert f"runs rerun {run.run_id}<" in page.read_text()
    for text in (own, page.read_text()):
        page.write_text(text)
        assert states(page, elsewhere)[run.run_id] == "same"
