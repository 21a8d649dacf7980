"""Files laid over files, as OmegaConf does it."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemotron_style.runtime.config.inheritance import merge_files
from nemotron_style.runtime.config.model import MANDATORY

_KEYS = st.sampled_from("abc")
_TEXTS = st.sampled_from(["", "x", "${a}", "${b.c}"])
_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), _TEXTS)


def _trees() -> st.SearchStrategy[dict[str, Any]]:
    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(st.lists(inner, max_size=2), st.dictionaries(_KEYS, inner, max_size=3))

    return st.dictionaries(_KEYS, st.recursive(_LEAVES, deeper, max_leaves=6), max_size=3)


@settings(max_examples=100, deadline=None)
@given(_trees(), _trees())
def test_what_is_merged_without_omegaconf_is_what_it_merges(
    base: dict[str, Any], top: dict[str, Any]
) -> None:
    assume(base)
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(base, top), resolve=False)
    except TypeError:  # of a list and a table it makes neither; the schema says which is wrong
        assume(False)
    assert merge_files(base, top) == merged


def test_what_is_demanded_again_is_mandatory() -> None:
    merged = merge_files({"a": {"b": 1, "c": 2}}, {"a": {"b": MANDATORY}})
    assert merged == {"a": {"b": MANDATORY, "c": 2}}
