"""Kinds of artifacts, and which kind may stand for which other one.

``is_a`` says that one kind may be used wherever another is wanted; ``convert_to`` names the step
that makes one kind out of another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron_style.runtime.catalog.tree import Tree, find_trees
from nemotron_style.runtime.errors import ManifestError, Problem, raise_all, shorten, suggest
from nemotron_style.runtime.paths import find_project_root, shipped_folder, show_path
from nemotron_style.runtime.text_file import read_toml_file
from nemotron_style.runtime.validation import explain_errors


class WeightFolder(BaseModel):
    """A ``folder`` of weights, and the ``module:function`` that gives the tensors in it by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    open: str


class Kind(BaseModel):
    """One table of ``kinds.toml``.

    ``signs`` are names of files that content of this kind has, each of them (``a|b``: one of two);
    ``advice`` says what to do with it where no step takes it. ``weights`` is where its weights are
    when they are no safetensors, and what opens them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    is_a: tuple[str, ...] = ()
    convert_to: dict[str, str] = Field(default_factory=dict)
    signs: tuple[str, ...] = ()
    advice: str = ""
    weights: WeightFolder | None = None


class Kinds:
    """All kinds, by name."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = dict(kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """Every kind's name, sorted."""
        return tuple(sorted(self._kinds))

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def __getitem__(self, name: str) -> Kind:
        """The kind called ``name``; raises ManifestError, with near matches, when there is none."""
        if name not in self._kinds:
            fix = suggest(name, self._kinds) or f"known kinds: {', '.join(self.names)}"
            raise ManifestError(Problem(what=f"there is no kind {shorten(repr(name))}", fix=fix))
        return self._kinds[name]

    def ancestors(self, name: str) -> tuple[str, ...]:
        """``name`` itself and everything that it is, nearest first.

        A kind that is not known here, of an artifact that another project made, is only itself.
        """
        found = [name]
        for known in (self._kinds[kind] for kind in found if kind in self._kinds):
            found += [wider for wider in known.is_a if wider not in found]
        return tuple(found)

    def accepts(self, wanted: str, offered: str) -> bool:
        """Whether an artifact of kind ``offered`` may be used where ``wanted`` is asked for."""
        return wanted in self.ancestors(offered)

    def conversion(self, offered: str, wanted: str) -> str | None:
        """The id of the step that makes something usable as ``wanted`` out of ``offered``."""
        for known in (self._kinds[kind] for kind in self.ancestors(offered) if kind in self):
            for target, step in known.convert_to.items():
                if self.accepts(wanted, target):
                    return step
        return None


def add_tree_kinds(kinds: Kinds, tree: Tree) -> tuple[Kinds, list[Problem]]:
    """``kinds`` with those of a tree's ``types.toml``; a name that is known keeps its meaning.

    Where the file is not in order, ``kinds`` as they are, and what is wrong with it.
    """
    path = tree.root / "types.toml"
    if not path.is_file():
        return kinds, []
    where, found, problems = show_path(path), {kind.name: kind for kind in kinds}, []
    try:
        tables = read_toml_file(path, ManifestError)
    except ManifestError as error:
        return kinds, list(error.problems)
    for name, table in tables.items():
        if name in kinds:
            continue
        try:
            kind = Kind.model_validate({**table, "name": name})
        except (ValidationError, TypeError) as error:
            problems += _explain_table(error, name, table, where)
            continue
        steps = {target: tree.name_step(step) for target, step in kind.convert_to.items()}
        found[name] = kind.model_copy(update={"convert_to": steps})
    problems += _check_names(found, dict.fromkeys(found, where))
    return (kinds, problems) if problems else (Kinds(found), [])


def load_kinds(*, paths: tuple[Path, ...] | None = None) -> Kinds:
    """The shipped kinds, those of the project's ``manifests/kinds.toml``, and those of trees.

    Raises ManifestError for a malformed table, an unknown name, a repeated kind or a cycle.
    """
    trees = find_trees() if paths is None else ()
    if paths is None:
        paths = tuple(root / "kinds.toml" for root in manifest_roots())
        paths = (paths[0], *filter(os.path.lexists, paths[1:]))
    kinds: dict[str, Kind] = {}
    origin: dict[str, str] = {}
    problems: list[Problem] = []
    for path in paths:
        where = show_path(path)
        for name, table in read_toml_file(path, ManifestError).items():
            try:
                kind = Kind.model_validate({**table, "name": name})
            except (ValidationError, TypeError) as error:
                problems += _explain_table(error, name, table, where)
                continue
            if name in origin:
                what = f"kind {name!r} is also in {origin[name]}"
                problems.append(Problem(where=where, key=name, what=what))
            kinds[name], origin[name] = kind, where
    problems += _check_names(kinds, origin)
    raise_all(ManifestError, problems)
    known = Kinds(kinds)
    for tree in trees:
        known = add_tree_kinds(known, tree)[0]  # what is wrong with one, `steps list` says
    return known


def manifest_roots() -> tuple[Path, ...]:
    """The folders of kinds and manifests: the shipped one, and the project's own if it has one."""
    shipped = shipped_folder("manifests")
    own = find_project_root(Path.cwd()) / "manifests"
    is_own = own.is_dir() and own.resolve() != shipped.resolve()
    return (shipped, own) if is_own else (shipped,)


def _explain_table(error: Exception, name: str, table: object, where: str) -> list[Problem]:
    if not isinstance(error, ValidationError):
        return [Problem(where=where, key=name, what="a kind is a table with a description")]
    problems = explain_errors(error, Kind, table, where=lambda _: where)
    return [replace(problem, key=f"{name}.{problem.key}") for problem in problems]


def _check_names(kinds: Mapping[str, Kind], origin: Mapping[str, str]) -> Iterator[Problem]:
    unknown = [
        (name, key, other)
        for name, kind in kinds.items()
        for key, others in (("is_a", kind.is_a), ("convert_to", tuple(kind.convert_to)))
        for other in others
        if other not in kinds
    ]
    for name, key, other in unknown:
        what, fix = f"there is no kind {other!r}", suggest(other, kinds)
        yield Problem(where=origin[name], key=f"{name}.{key}", what=what, fix=fix)
    all_kinds = Kinds(kinds)
    for name, kind in kinds.items() if not unknown else ():
        if any(all_kinds.accepts(name, wider) for wider in kind.is_a):
            yield Problem(where=origin[name], key=f"{name}.is_a", what="goes round in a circle")
