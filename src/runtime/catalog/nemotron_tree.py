"""Steps in NVIDIA Nemotron's layout, read as manifests of ours.

Such a step is a folder with ``step.toml`` (the tables of our manifests but for ``[run]``),
``step.py`` with its runspec (:mod:`.runspec`) and ``config/*.yaml``. Nothing of it is executed to
list, show or plan it. A slot is called by its kind where it has no ``name``. Which key of the
config holds an input's path, or the folder to write to, NVIDIA's files do not say: a slot may say
it with ``config_key``, and for the tree called ``nemotron`` our ``manifests/nemotron_keys.toml``
does.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from nemotron_style.runtime.catalog.manifest import Document, Manifest, Tables
from nemotron_style.runtime.catalog.runspec import Runspec, read_runspec
from nemotron_style.runtime.catalog.slot import Slot, Table
from nemotron_style.runtime.catalog.tree import DEFAULT_NAME, Tree
from nemotron_style.runtime.errors import ManifestError, Problem
from nemotron_style.runtime.paths import expand_path, shipped_folder, show_path
from nemotron_style.runtime.text_file import read_toml_file
from nemotron_style.runtime.validation import explain_errors, get_key

PACKAGE = "nemotron_style.steps.nemotron.tree"
KEYS = "nemotron_keys.toml"
LAUNCH = {"direct": "python"}
# Keys of [step] that NVIDIA's own lists show, and that say nothing to a runner.
FOR_PEOPLE = ("stack", "difficulty")


class TreeSlot(Slot):
    """A slot whose path, with ``file`` below it, goes to ``config_key`` and the keys ``copies``."""

    file: str | None = None
    copies: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that gets the path; none where nothing says which."""
        return (self.config_key, *self.copies) if self.config_key else ()


class TreeDocument(Document):
    """A ``step.toml`` of a tree, its slots named and its ``[run]`` made from the runspec."""

    consumes: tuple[TreeSlot, ...] = ()
    produces: tuple[TreeSlot, ...] = ()


class BoundSlot(Table):
    """An entry of ``nemotron_keys.toml``: what a slot of NVIDIA's step does not say."""

    key: str
    file: str | None = None
    copies: tuple[str, ...] = ()


class BoundStep(Table):
    """One table of ``nemotron_keys.toml``, by kinds; ``literal`` keys are not interpolated."""

    consumes: dict[str, BoundSlot] = Field(default_factory=dict)
    produces: dict[str, BoundSlot] = Field(default_factory=dict)
    literal: tuple[str, ...] = ()


class TreeManifest(Manifest):
    """A step of a tree. ``literal`` keys of its config reach ``step.py`` as they are written.

    ``run_env`` is what the chosen config says in ``run.env``, once there is one (``settle``).
    """

    tree: str
    import_root: Path | None
    runspec: Runspec
    literal: tuple[str, ...] = ()
    run_env: dict[str, Any] = Field(default_factory=dict)

    @property
    def script(self) -> Path:
        """The program of the step."""
        return self.folder / "step.py"

    @property
    def config_folder(self) -> Path:
        """Where its configs lie, as the runspec says."""
        return self.folder / self.runspec.config.dir

    @property
    def default_config(self) -> str:
        """The config that is meant where none is named, as the runspec says."""
        return self.runspec.config.default

    def describe_start(self) -> Iterator[tuple[str, str]]:
        """(key, value) of what the runspec says about the job, for ``steps show``."""
        spec = self.runspec
        counts = f"{spec.resources.nodes} x {spec.resources.gpus_per_node} GPUs"
        yield from (("launch", spec.run.launch), ("resources", counts))
        known = {"image": spec.image, "workdir": spec.run.workdir, "cmd": spec.run.cmd}
        yield from ((key, value) for key, value in known.items() if value)

    def is_content(self, value: Any) -> bool:
        """Whether a value at an input's key is a path here; a hub id, say, is left as it is."""
        return os.path.exists(expand_path(str(value)))

    def slots(self, side: str) -> tuple[TreeSlot, ...]:
        """The slots of ``input`` or ``output``."""
        slots = self.consumes if side == "input" else self.produces
        return tuple(slot for slot in slots if isinstance(slot, TreeSlot))

    def marks(self, side: str, names: Iterable[str]) -> dict[str, str]:
        """The text that stands at each key of the named slots until the job knows their paths."""
        return {
            key: mark(side, slot.name, slot.file)
            for slot in self.slots(side)
            if slot.name in names
            for key in slot.keys
        }

    def settle(self, values: dict[str, Any]) -> TreeManifest:
        """The step as a config leaves it; takes the table ``run`` out of its ``values``.

        An input whose key holds something, or that has no key, is not asked for.
        """
        run = values.pop("run", None)
        run_env = run.get("env") if isinstance(run, dict) else None
        run_env = run_env if isinstance(run_env, dict) else {}
        consumes = [
            slot.model_copy(update={"required": False})
            if not slot.config_key or get_key(values, slot.config_key) is not None
            else slot
            for slot in self.slots("input")
        ]
        produces = [
            slot
            for slot in self.slots("output")
            if slot.required or (slot.config_key and get_key(values, slot.config_key) is not None)
        ]
        image = run_env.get("container_image") or self.run.image
        return self.model_copy(
            update={
                "run": self.run.model_copy(update={"image": image}),
                "run_env": run_env,
                "consumes": tuple(consumes),
                "produces": tuple(produces),
            }
        )


def mark(side: str, slot: str, file: str | None = None) -> str:
    """What stands for the path of a slot in a plan: ``{output:model}``, and the file below it."""
    return "/".join(filter(None, [f"{{{side}:{slot}}}", file]))


def read_tree(tree: Tree) -> Iterator[tuple[str, Manifest | ManifestError]]:
    """Every step of a tree by its id, or what is wrong with it.

    One that cannot be read is called by its folder.
    """
    keys = read_keys() if tree.name == DEFAULT_NAME else {}
    for path in sorted(tree.root.rglob("step.toml")):
        name = tree.name_step(path.parent.relative_to(tree.root).as_posix())
        try:
            manifest = read_step(path, tree, keys)
        except ManifestError as error:
            yield name, error
        else:
            yield manifest.id, manifest


def read_keys() -> Mapping[str, BoundStep]:
    """What we know of the keys of NVIDIA's own steps, by their ids."""
    tables = read_toml_file(shipped_folder("manifests") / KEYS, ManifestError)
    return {name: BoundStep.model_validate(table) for name, table in tables.items()}


def read_step(path: Path, tree: Tree, keys: Mapping[str, BoundStep]) -> TreeManifest:
    """The manifest of one ``step.toml`` and the ``step.py`` beside it.

    Raises ManifestError with everything that is wrong with them.
    """
    where, table, problems = show_path(path), read_toml_file(path, ManifestError), []
    try:
        spec = read_runspec(path.with_name("step.py"))
    except ManifestError as error:
        spec, problems = Runspec(), list(error.problems)
    if "run" in table:
        what = "[run] belongs to a manifest of this program; in a tree step.py says how it runs"
        problems.append(Problem(where=where, key="run", what=what, fix="take it out"))
    table = {**table, "run": _describe_run(spec)}
    table["step"] = _complete_header(table.get("step", {}), path)
    own_id = str(table["step"].get("id"))
    bound = keys.get(own_id, BoundStep())
    for slots, known in (("consumes", bound.consumes), ("produces", bound.produces)):
        if isinstance(table.get(slots), list):
            table[slots] = list(_complete_slots(table[slots], known))
    try:
        document = TreeDocument.model_validate(table)
    except ValidationError as error:
        found = explain_errors(error, TreeDocument, table, where=lambda _: where)
        raise ManifestError([*problems, *found]) from None
    problems += _check(document, spec, path, where)
    if problems:
        raise ManifestError(problems)
    header = document.step.model_dump() | {"id": tree.name_step(own_id)}
    return TreeManifest(
        path=path,
        tree=tree.name,
        import_root=tree.import_root,
        runspec=spec,
        literal=("run.env.mounts", *bound.literal),  # mounts may be clones of repositories
        **header,
        **{name: getattr(document, name) for name in Tables.model_fields},
    )


def _describe_run(spec: Runspec) -> dict[str, Any]:
    # A command of the step's own starts its ranks itself, once a machine.
    launch = "python" if spec.run.cmd and spec.run.launch == "torchrun" else spec.run.launch
    return {
        "entrypoint": f"{PACKAGE}.recipe:run",
        "config": f"{PACKAGE}.config:Config",
        "launch": LAUNCH.get(launch, launch),
        "image": spec.image,
        "passthrough": True,
    }


def _complete_header(header: Any, path: Path) -> Any:
    """``[step]`` with what NVIDIA's reader adds: names and ids from the folders."""
    if not isinstance(header, dict):
        return header
    category = str(header.get("category") or path.parent.parent.name)
    folder = path.parent.name
    given = {key: value for key, value in header.items() if key not in FOR_PEOPLE}
    summary = given.pop("summary", "")
    default = {"id": f"{category}/{folder}", "name": folder.replace("_", " ").title()}
    return {**default, "category": category, "description": summary, **given}


def _complete_slots(slots: list[Any], known: Mapping[str, BoundSlot]) -> Iterator[Any]:
    """Each slot with a name, and with the key that we know of where it says none itself."""
    counts: Counter[str] = Counter()
    for slot in slots:
        if not isinstance(slot, dict) or not isinstance(slot.get("type"), str):
            yield slot
            continue
        kind = slot["type"]
        counts[kind] += 1
        name = re.sub(r"\W", "_", kind.lower()) + (f"_{counts[kind]}" if counts[kind] > 1 else "")
        bound = known.get(kind) if "config_key" not in slot else None
        more = (
            {"config_key": bound.key, "file": bound.file, "copies": bound.copies} if bound else {}
        )
        yield {"name": name, **slot, **more}


def _check(document: Document, spec: Runspec, path: Path, where: str) -> Iterable[Problem]:
    folder = path.parent / spec.config.dir
    if not (folder / f"{spec.config.default}.yaml").is_file():
        script, key = show_path(path.with_name("step.py")), "tool.runspec.config.default"
        what = f"there is no config {spec.config.default}.yaml in {show_path(folder)}"
        names = ", ".join(sorted(each.stem for each in folder.glob("*.yaml"))) or "none"
        yield Problem(where=script, key=key, what=what, allowed=names)
    if not document.produces:
        what, fix = "makes no artifact", "add [[produces]] with the type of what it writes"
        yield Problem(where=where, key="produces", what=what, fix=fix)
    for table, slots in (("consumes", document.consumes), ("produces", document.produces)):
        twice = [name for name, n in Counter(slot.name for slot in slots).items() if n > 1]
        for name in twice:
            yield Problem(where=where, key=f"{table}.name", what=f"slot {name!r} stands twice")
