from __future__ import annotations

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.errors import ManifestError, RefError


def add_step(toy, step: str, *, root: str = "manifests", **changes: str) -> None:
    text = (toy.folder / "step.toml").read_text()
    text = text.replace('id = "toy/train"', f'id = "{step}"')
    text = text.replace('aliases = ["toy/learn"]', f"aliases = {changes.get('aliases', '[]')}")
    text = text.replace('type = "training_jsonl"', f'type = "{changes.get("kind", "raw_jsonl")}"')
    toy.write(f"{root}/{step}/step.toml", text)


def test_a_step_is_found_by_id_alias_and_unique_tail(toy):
    catalog = load_catalog()
    assert catalog.find("toy/train").id == "toy/train"
    assert catalog.find("toy/learn").id == "toy/train"
    assert catalog.find("learn").id == "toy/train"
    assert catalog.find("toy/train/").id == "toy/train"


def test_an_ambiguous_tail_names_every_step(toy):
    add_step(toy, "other/train")
    with pytest.raises(RefError, match="other/train, toy/train"):
        load_catalog().find("train")


def test_an_unknown_step_names_its_neighbour(toy):
    with pytest.raises(RefError, match=r"no step 'toy/trian'; did you mean 'toy/train'"):
        load_catalog().find("toy/trian")


def test_a_broken_manifest_takes_only_its_own_step_away(toy):
    toy.write("manifests/toy/broken/step.toml", "[step\n")
    catalog = load_catalog()
    assert "toy/train" in catalog.steps
    assert list(catalog.broken) == ["toy/broken"]
    with pytest.raises(ManifestError, match=r"toy/broken/step\.toml:1"):
        catalog.find("toy/broken")
    with pytest.raises(ManifestError, match="not valid TOML"):
        catalog.find("broken")


def test_an_unknown_kind_breaks_the_step_and_names_its_neighbour(toy):
    add_step(toy, "toy/other", kind="trainig_jsonl")
    catalog = load_catalog()
    (problem,) = catalog.broken["toy/other"]
    assert problem.key == "consumes[1].type"
    assert "training_jsonl" in problem.fix


def test_a_step_that_stands_twice_names_both_paths(toy):
    add_step(toy, "toy/train", root="more")
    roots = (toy.root / "manifests", toy.root / "more")
    catalog = load_catalog(roots=roots)
    assert "toy/train" not in catalog.steps
    with pytest.raises(ManifestError) as caught:
        catalog.find("toy/train")
    assert "manifests/toy/train/step.toml and more/toy/train/step.toml" in str(caught.value)


@pytest.mark.parametrize("alias", ["toy/learn", "toy/train"])
def test_an_alias_that_names_something_else_already_is_refused(toy, alias):
    add_step(toy, "toy/other", aliases=f'["{alias}"]')
    catalog = load_catalog()
    assert "step.aliases" in str(catalog.broken["toy/other"][0])
    assert "toy/train" in str(catalog.broken["toy/other"][0])


def test_steps_are_found_by_what_they_take_and_make(toy):
    add_step(toy, "toy/raw", kind="raw_jsonl")
    catalog = load_catalog(roots=(toy.root / "manifests",))
    assert [step.id for step in catalog.consumers("prompts_jsonl")] == ["toy/train"]
    assert [step.id for step in catalog.consumers("raw_jsonl")] == ["toy/raw"]
    assert [step.id for step in catalog.producers("checkpoint_megatron")] == [
        "toy/raw",
        "toy/train",
    ]


def test_every_shipped_manifest_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    catalog = load_catalog()
    assert not catalog.problems, "\n".join(map(str, catalog.problems))


def test_every_conversion_is_a_step_that_makes_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    catalog = load_catalog()
    for kind in catalog.kinds:
        for target, step in kind.convert_to.items():
            made = [slot.kind for slot in catalog.find(step).produces]
            assert any(catalog.kinds.accepts(target, each) for each in made)
