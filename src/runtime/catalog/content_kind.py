"""The kind of content that lies outside the store, found by the names of its files.

``kinds.toml`` says what a kind looks like (``signs``); of the content only names are read.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path, PurePosixPath

from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.kinds import Kind, Kinds
from nemotron_style.runtime.catalog.slot import Slot
from nemotron_style.runtime.errors import Problem, UsageError

SHOWN = 6
MOST_MEMBERS = 64  # of an archive; its description is among the first


def list_names(path: Path) -> list[str]:
    """The names in a folder and in its folders, those of folders with a slash at the end.

    Of a lone file, its own name, and those in it where it is a tar, however it is called. A folder
    that cannot be listed has no names.
    """
    if not path.is_dir():
        return [path.name, *_list_archive(path)]
    names = []
    for entry in _scan(path):
        names.append(entry.name)
        if entry.is_dir():
            names[-1] += "/"
            names += [f"{entry.name}/{inner.name}" for inner in _scan(Path(entry.path))]
    return sorted(names)


def _scan(path: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(path))
    except OSError:
        return []


def _list_archive(path: Path) -> list[str]:
    """The first names in a plain tar; none in another file."""
    if not path.is_file():  # opening a pipe would wait for ever
        return []
    try:
        with tarfile.open(path, "r:") as archive:
            return [str(PurePosixPath(member.name)) for member in islice(archive, MOST_MEMBERS)]
    except (tarfile.TarError, OSError, EOFError, ValueError):
        return []


def has_signs(kind: Kind, names: Sequence[str]) -> bool:
    """Whether all signs of a kind are among the names of some content."""
    return bool(kind.signs) and all(_is_among(names, sign) for sign in kind.signs)


def _is_among(names: Sequence[str], sign: str) -> bool:
    return any(
        # A star does not reach into folders, and a folder is written with its slash.
        name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
        for pattern in sign.split("|")
        for name in names
    )


def recognise(names: Sequence[str], kinds: Kinds) -> list[Kind]:
    """The kinds that content with these names may be: of those whose signs it has, the closest.

    A reward model has the signs of a Hugging Face checkpoint and one more. Rows look alike
    whatever they are for, so that there may be several; there is none for unknown content.
    """
    found = [kind for kind in kinds if has_signs(kind, names)]
    most = max((len(kind.signs) for kind in found), default=0)
    return [kind for kind in found if len(kind.signs) == most]


def usable_kinds(slot: Slot, catalog: Catalog) -> list[str]:
    """The kinds that fill ``slot``, those that it names first, then those that can be converted."""
    taken = [kind.name for kind in catalog.kinds if catalog.takes(slot, kind.name)]
    taken.sort(key=lambda name: name not in (slot.kind, *slot.also))
    steps = {name: catalog.kinds.conversion(name, slot.kind) for name in catalog.kinds.names}
    converted = [name for name, step in steps.items() if step in catalog.steps]
    return list(dict.fromkeys([slot.kind, *slot.also, *taken, *converted]))


def suggest_makers(kind: str, slot: Slot, catalog: Catalog) -> str:
    """Which conversions make what fills ``slot`` of content of another kind; else what fills it."""
    makers = [
        f"{manifest.id} makes {made.kind} of it (-i {taken.name}=REF)"
        for manifest in catalog.steps.values()
        if manifest.id.startswith("convert/")  # what else trains on it is no other form of it
        for taken in manifest.consumes
        for made in manifest.produces
        if catalog.takes(taken, kind) and catalog.takes(slot, made.kind)
    ]
    return ", or ".join(makers) or f"usable are {', '.join(usable_kinds(slot, catalog))}"


def choose_kind(names: Sequence[str], slot: Slot, catalog: Catalog, *, location: str) -> str:
    """The kind as which content with these names fills ``slot``, as it is or converted.

    A kind without signs may look like anything, and files of unknown names may be rows, which
    whoever reads them will see. Raises ``UsageError`` for what cannot fill the slot.
    """
    usable = usable_kinds(slot, catalog)
    found = {kind.name: kind for kind in recognise(names, catalog.kinds)}
    fits = [name for name in usable if name in found]
    if fits:
        return fits[0]
    wanted = [catalog.kinds[name] for name in (slot.kind, *slot.also)]
    if any(len(kind.signs) <= (not found) for kind in wanted):
        return slot.kind
    first = next(iter(found.values()), None)
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "") or "nothing"
    looks = f"looks like {first.name} ({first.description})" if first else f"holds {shown}"
    allowed = ", or ".join(f"{kind.name} ({describe_signs(kind)})" for kind in wanted)
    problem = Problem(
        what=f"{location} is no {slot.kind}: it {looks}",
        allowed=allowed,
        fix=first.advice if first else "",
    )
    raise UsageError(problem)


def check_kind(path: Path, name: str, kinds: Kinds) -> None:
    """Raise ``UsageError`` for content that looks like another kind than ``name``, which has signs.

    Content that looks like nothing that is known is what its owner says.
    """
    found = recognise(list_names(path), kinds) if kinds[name].signs else []
    if found and not any(kinds.accepts(name, kind.name) for kind in found):
        what = f"it looks like {found[0].name} ({found[0].description})"
        fix = f"give --kind {found[0].name}; the steps that want another are given it converted"
        raise UsageError(Problem(where=str(path), what=what, got=f"--kind {name}", fix=fix))


def describe_signs(kind: Kind) -> str:
    """What content of a kind has, in words."""
    return " and ".join(" or ".join(sign.split("|")) for sign in kind.signs) or kind.description
