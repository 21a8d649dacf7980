"""References that need no OmegaConf have the value that it gives them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemotron_style.runtime.config.interpolation import _UNRESOLVED, _find_named

_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([1.5, "", "x", "???"])
)
_REFERENCES = st.sampled_from(["${a}", "${b}", "${c.a}", "${c.b}", "${.a}", "${a}x", "${c}"])
_VALUES = st.one_of(_LEAVES, _REFERENCES)
_TABLES = st.fixed_dictionaries(
    {}, optional={"a": _VALUES, "b": _VALUES, "c": st.dictionaries(st.sampled_from("ab"), _VALUES)}
)


@settings(max_examples=100, deadline=None)
@given(_TABLES, _REFERENCES)
def test_a_value_found_by_name_is_the_one_that_omegaconf_finds(
    tables: dict[str, Any], text: str
) -> None:
    found = _find_named(tables, text)
    try:
        theirs = OmegaConf.create({**tables, "asked": text})["asked"]
    except OmegaConfBaseException:
        theirs = _UNRESOLVED
    assert found is _UNRESOLVED or (found, type(found)) == (theirs, type(theirs))
