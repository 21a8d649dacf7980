"""All steps that can be run: those that come with the package and those of the project.

A manifest that cannot be used takes away its own step and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_style.runtime.catalog.kinds import (
    Kinds,
    add_tree_kinds,
    load_kinds,
    manifest_roots,
)
from nemotron_style.runtime.catalog.manifest import Manifest, load_manifest
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest, read_tree
from nemotron_style.runtime.catalog.slot import Slot
from nemotron_style.runtime.catalog.tree import find_trees
from nemotron_style.runtime.errors import ManifestError, Problem, RefError, suggest
from nemotron_style.runtime.paths import show_path


@dataclass(frozen=True)
class Catalog:
    """The steps by id; ``broken`` keeps, by the id that a folder says, why a step is not there."""

    steps: Mapping[str, Manifest]
    broken: Mapping[str, Sequence[Problem]]
    kinds: Kinds
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with any manifest."""
        return tuple(problem for problems in self.broken.values() for problem in problems)

    def find(self, word: str) -> Manifest:
        """The step that ``word`` names: its id, an alias of it, or the tail of exactly one id.

        Raises ManifestError for a step whose manifest is broken, and RefError, with near matches,
        where no step or more than one is called so.
        """
        word = word.strip("/")
        exact = self.aliases.get(word, word)
        if exact in self.steps:
            return self.steps[exact]
        if exact in self.broken:
            raise ManifestError(self.broken[exact])
        names = [*self.steps, *self.broken, *self.aliases]
        hits = {self.aliases.get(name, name) for name in names if name.endswith("/" + word)}
        # A tree that somebody adds must not take a short name away from a step of ours.
        own = {name for name in hits if not isinstance(self.steps.get(name), TreeManifest)}
        hits = own or hits
        if len(hits) == 1:
            return self.find(hits.pop())
        if hits:
            what, allowed = f"{word!r} names more than one step", ", ".join(sorted(hits))
            raise RefError(Problem(what=what, allowed=allowed))
        tails = [name.rsplit("/", 1)[-1] for name in names]
        fix = suggest(word, [*names, *tails])
        allowed = "" if fix else ", ".join(self._related(word))
        fix = fix or "see them with: nemotron-style steps list"
        raise RefError(Problem(what=f"there is no step {word!r}", allowed=allowed, fix=fix))

    def _related(self, word: str) -> list[str]:
        """Steps of the category that a word begins with, or with the word among their tags."""
        category = word.partition("/")[0]
        return [
            step.id
            for step in self.steps.values()
            if step.category == category or word.lower() in step.tags
        ]

    def takes(self, slot: Slot, kind: str) -> bool:
        """Whether an artifact of ``kind`` fills ``slot`` as it is."""
        return any(self.kinds.accepts(wanted, kind) for wanted in (slot.kind, *slot.also))

    def producers(self, kind: str) -> tuple[Manifest, ...]:
        """The steps with an output that may be used as ``kind``."""
        return tuple(
            step
            for step in self.steps.values()
            if any(self.kinds.accepts(kind, slot.kind) for slot in _list_slots(step, "produces"))
        )

    def consumers(self, kind: str) -> tuple[Manifest, ...]:
        """The steps with an input for which a ``kind`` may be used."""
        return tuple(
            step
            for step in self.steps.values()
            if any(self.takes(slot, kind) for slot in _list_slots(step, "consumes"))
        )


def _list_slots(step: Manifest, table: str) -> Iterator[Slot]:
    """The slots of a step and of its variants."""
    for form in step.forms.values():
        yield from getattr(form, table)


def load_catalog(
    *, roots: Sequence[Path] | None = None, profile_steps: Sequence[str] = ()
) -> Catalog:
    """Read every ``step.toml`` below ``roots``: the shipped manifests, then the project's own.

    Then those of the trees that the environment, and a profile with its ``steps``, name.

    Raises ManifestError only for ``kinds.toml``, without which nothing can be understood, and
    UsageError for a tree that is not there.
    """
    kinds, trees = load_kinds(), find_trees(profile_steps)
    roots = manifest_roots() if roots is None else roots
    found: dict[str, list[Path]] = {}
    steps: dict[str, Manifest] = {}
    broken: dict[str, list[Problem]] = {}
    paths = [(root, path) for root in roots for path in sorted(root.glob("*/**/step.toml"))]
    for root, path in paths:
        name = path.parent.relative_to(root).as_posix()
        found.setdefault(name, []).append(path)
        try:
            manifest = load_manifest(path, root=root)
        except ManifestError as error:
            broken.setdefault(name, []).extend(error.problems)
            continue
        steps[name] = manifest
    for tree in trees:
        kinds, problems = add_tree_kinds(kinds, tree)
        if problems:
            broken[f"{tree.name}/types.toml"] = problems
        for name, step in read_tree(tree):
            if name in steps or name in broken:
                broken[f"{name} in {show_path(tree.root)}"] = [_explain_taken(name, step, steps)]
            elif isinstance(step, Manifest):
                steps[name] = step
            else:
                broken[name] = list(step.problems)
    for name, manifest in steps.items():
        broken.setdefault(name, []).extend(_unknown_kinds(manifest, kinds))
    for name, manifest in steps.items():
        broken.setdefault(name, []).extend(_unmet_needs(manifest, steps))
    broken = {name: problems for name, problems in broken.items() if problems}
    for name, own in found.items():
        if len(own) > 1:
            files = " and ".join(map(show_path, own))
            what, fix = f"step {name!r} stands in {files}", "rename or remove one of them"
            broken.setdefault(name, []).append(Problem(what=what, fix=fix))
    aliases = _collect_aliases(steps, broken)
    whole = {name: steps[name] for name in sorted(steps) if name not in broken}
    return Catalog(steps=whole, broken=dict(sorted(broken.items())), kinds=kinds, aliases=aliases)


def _explain_taken(
    name: str, step: Manifest | ManifestError, steps: Mapping[str, Manifest]
) -> Problem:
    where = show_path(step.path) if isinstance(step, Manifest) else step.problems[0].where
    other = f" of {show_path(steps[name].path)}" if name in steps else ""
    what, fix = f"there is a step {name!r} already{other}", "rename one of them, or the tree"
    return Problem(where=where, key="step.id", what=what, fix=fix)


def _unknown_kinds(manifest: Manifest, kinds: Kinds) -> Iterator[Problem]:
    for prefix, form in _list_forms(manifest):
        for table, slots in (("consumes", form.consumes), ("produces", form.produces)):
            kinds_of = [
                (at, kind) for at, slot in enumerate(slots) for kind in (slot.kind, *slot.also)
            ]
            for index, kind in kinds_of:
                if kind not in kinds:
                    fix = suggest(kind, kinds.names) or "add it to kinds.toml"
                    key, what = f"{prefix}{table}[{index}].type", f"there is no kind {kind!r}"
                    yield Problem(where=show_path(manifest.path), key=key, what=what, fix=fix)


def _unmet_needs(manifest: Manifest, steps: Mapping[str, Manifest]) -> Iterator[Problem]:
    services = [name for name, step in steps.items() if step.run.service]
    for prefix, form in _list_forms(manifest):
        for index, need in enumerate(form.needs):
            if need.step not in services:
                what, got = "there is no such service", repr(need.step)
                where, key = show_path(manifest.path), f"{prefix}needs[{index}].step"
                fix = suggest(need.step, services)
                yield Problem(where=where, key=key, what=what, got=got, fix=fix)


def _list_forms(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The step with the tables that it or one of its variants has, and where they stand."""
    yield "", manifest
    for name, variant in manifest.variants.items():
        tables = ("consumes", "produces", "needs")
        inherited = {table: () for table in tables if getattr(variant, table) is None}
        yield f"variants.{name}.", manifest.forms[name].model_copy(update=inherited)


def _collect_aliases(
    steps: Mapping[str, Manifest], broken: dict[str, list[Problem]]
) -> dict[str, str]:
    claims: dict[str, list[str]] = {}
    for name, manifest in steps.items():
        for alias in manifest.aliases:
            claims.setdefault(alias, []).append(name)
    for alias, names in claims.items():
        rivals = [*names, alias] if alias in steps or alias in broken else names
        if len(rivals) == 1:
            continue
        for name in names:
            where = show_path(steps[name].path)
            others = " and ".join(repr(rival) for rival in rivals if rival != name)
            what = f"{alias!r} also names {others or repr(name)}"
            problem = Problem(where=where, key="step.aliases", what=what)
            broken.setdefault(name, []).append(problem)
    return {alias: names[0] for alias, names in claims.items() if len(names) == 1}
