"""The table of all layouts, and which of them a row has."""

from __future__ import annotations

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.layouts.conversations import CONVERSATIONS
from nemotron_style.steps.blocks.data.layouts.judged import JUDGED
from nemotron_style.steps.blocks.data.layouts.layout import Layout, Row, Use
from nemotron_style.steps.blocks.data.layouts.prompts import ONLY_PROMPTS
from nemotron_style.steps.blocks.data.layouts.refused import REFUSED

LAYOUTS = (*CONVERSATIONS, *JUDGED, *ONLY_PROMPTS)
USES: tuple[Use, ...] = ("training", "prompts", "ratings", "comparisons")


def recognise(row: Row, use: Use, name: str | None = None, *, key: str = "data") -> Layout:
    """The layout of a row for a use; with ``name``, the one that the config's ``key`` says.

    Raises:
        InputError: it has none, several, or one that is known and not read.
    """
    fitting = [layout for layout in LAYOUTS if use in layout.uses and layout.fits(row)]
    if name is not None:
        return _named(name, use, fitting, row, key=key)
    found = [layout for layout in fitting if not layout.last_resort]
    known = (layout for layout in REFUSED if layout.always or not fitting)
    if refused := next((layout for layout in known if layout.fits(row)), None):
        what = f"the row has a layout that is not read ({refused.name}): {refused.why}"
        raise InputError(Problem(what=what, got=columns(row), fix=refused.fix))
    found = found or fitting
    if len(found) > 1:
        raise InputError(
            Problem(
                what="the row has several layouts: "
                + " and ".join(layout.name for layout in found),
                got=columns(row),
                fix=f"say which is meant, such as {key}.layout={found[0].name}, or remove columns",
            )
        )
    if not found:
        raise _unknown(row, use)
    return found[0]


def names_for(use: Use) -> list[str]:
    """The names of the layouts that can be read for a use."""
    return [layout.name for layout in LAYOUTS if use in layout.uses]


def columns(row: Row) -> str:
    """The columns of a row that are not null, for a message."""
    return ", ".join(name for name, value in row.items() if value is not None) or "an empty object"


def _named(name: str, use: Use, fitting: list[Layout], row: Row, *, key: str) -> Layout:
    for layout in fitting:
        if layout.name == name:
            return layout
    if name not in names_for(use):
        what = f"no layout of {use} has this name"
        raise InputError(
            Problem(key=f"{key}.layout", what=what, got=name, allowed=", ".join(names_for(use)))
        )
    raise InputError(Problem(what=f"the row is not {name}", got=columns(row)))


def _unknown(row: Row, use: Use) -> InputError:
    others = {
        other: layout.name
        for other in USES
        for layout in LAYOUTS
        if other != use and other in layout.uses and layout.fits(row) and not layout.last_resort
    }
    what, fix = f"no layout of {use} has these columns", _rows_within(row)
    if others:
        names = ", ".join(f"{name} ({other})" for other, name in others.items())
        what, fix = f"these columns are not {use}; they are {names}", ""
    allowed = "; ".join(names_for(use))
    return InputError(Problem(what=what, got=columns(row), allowed=allowed, fix=fix))


def _rows_within(row: Row) -> str:
    """What to do with an object that is no row but holds them: ``{"train": [{...}, ...]}``."""
    lists = [name for name, value in row.items() if isinstance(value, list) and value]
    found = [name for name in lists if isinstance(row[name][0], dict)]
    return f"the rows stand in {found[0]!r}: give that list alone" if len(found) == 1 else ""
