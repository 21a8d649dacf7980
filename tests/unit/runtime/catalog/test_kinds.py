from __future__ import annotations

import pytest

from nemotron_style.runtime.catalog.kinds import load_kinds
from nemotron_style.runtime.errors import ManifestError


def kinds_of(tmp_path, text):
    path = tmp_path / "kinds.toml"
    path.write_text(text)
    return load_kinds(paths=(path,))


FAMILY = """
[any]
description = "any"
[wide]
description = "wide"
is_a = ["any"]
[narrow]
description = "narrow"
is_a = ["wide"]
convert_to = { other = "convert/narrow_to_other" }
[narrowest]
description = "narrowest"
is_a = ["narrow"]
[other]
description = "other"
is_a = ["target"]
[target]
description = "target"
"""


def test_a_narrower_kind_may_stand_for_a_wider_one_and_not_the_reverse(tmp_path):
    kinds = kinds_of(tmp_path, FAMILY)
    assert kinds.accepts("any", "narrow")
    assert kinds.accepts("narrow", "narrow")
    assert not kinds.accepts("narrow", "any")
    assert not kinds.accepts("other", "narrow")


def test_a_conversion_is_found_through_both_families(tmp_path):
    kinds = kinds_of(tmp_path, FAMILY)
    assert kinds.conversion("narrow", "other") == "convert/narrow_to_other"
    assert kinds.conversion("narrowest", "target") == "convert/narrow_to_other"
    assert kinds.conversion("wide", "other") is None


def test_a_kind_of_another_project_is_only_itself(tmp_path):
    kinds = kinds_of(tmp_path, FAMILY)
    assert kinds.accepts("theirs", "theirs")
    assert not kinds.accepts("any", "theirs")
    assert kinds.conversion("theirs", "narrow") is None


def test_unknown_names_circles_and_keys_are_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"one\.is_a: there is no kind 'tow'.*'two'"):
        kinds_of(tmp_path, '[one]\ndescription="1"\nis_a=["tow"]\n[two]\ndescription="2"')
    with pytest.raises(ManifestError, match="circle"):
        kinds_of(tmp_path, '[a]\ndescription=""\nis_a=["b"]\n[b]\ndescription=""\nis_a=["a"]')
    with pytest.raises(ManifestError, match=r"a\.isa: is not a known key; did you mean 'is_a'"):
        kinds_of(tmp_path, '[a]\ndescription=""\nisa=["b"]')
    with pytest.raises(ManifestError, match="a kind is a table"):
        kinds_of(tmp_path, "a = 1")


def test_an_unknown_kind_names_its_neighbour(tmp_path):
    with pytest.raises(ManifestError, match="did you mean 'narrow'"):
        kinds_of(tmp_path, FAMILY)["narow"]


def test_a_kind_told_twice_names_both_files(tmp_path):
    first, second = tmp_path / "one.toml", tmp_path / "two.toml"
    for path in (first, second):
        path.write_text('[a]\ndescription = "a"')
    with pytest.raises(ManifestError, match=r"two\.toml.*one\.toml"):
        load_kinds(paths=(first, second))


def test_a_project_may_add_kinds(toy):
    toy.write("manifests/kinds.toml", '[mine]\ndescription = "mine"\nis_a = ["training_jsonl"]')
    kinds = load_kinds()
    assert kinds.accepts("training_jsonl", "mine")
    assert "checkpoint_megatron" in kinds


def test_prompts_are_conversations_and_not_the_reverse():
    kinds = load_kinds()
    assert kinds.accepts("training_jsonl", "prompts_jsonl")
    assert not kinds.accepts("prompts_jsonl", "training_jsonl")
