"""Random changes to a job: it is the same run exactly when it means the same.

A job is written down over and over, each time with one change or none, and each time spelled
another way: order and quoting of keys, comments, files that inherit, overrides, spellings of
numbers, interpolations, profile, folders, store, cosmetic keys, what lies beside the package. What
it means is kept apart, as plain data. Two jobs of one meaning must have one run id (else there is a
needless rerun), and two of one run id one meaning (else a false reuse).

``NEMOTRON_STYLE_MUTATIONS=10000`` is the campaign; the seed is in ``NEMOTRON_STYLE_SEED``.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from nemotron_style.runtime.config.yaml_file import parse_value
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.store.store import Store

COUNT = int(os.environ.get("NEMOTRON_STYLE_MUTATIONS", "60"))
SEED = int(os.environ.get("NEMOTRON_STYLE_SEED", "7"))
KEYS = ("a", "b", "a.b", "w", "w.help", "help", "a[0]", "on", "code", "generation", '"a"', "é")
VALUES = (0, 1, 2, 10, 1.0, 2.5, 1e-5, True, False, None, "", "1", "true", "no", "010", "x y", "é")
SCHEMA = (
    "    rate: float = 0.5\n    extra: dict[str, Any] = {}\n    level: str = cosmetic('info')\n"
)
WORDS = ("alpha", "beta", "gamma")


@dataclass
class Job:
    """What a run of ``mill/bake`` means; ``upstream`` is the config of what makes its input."""

    values: dict[str, Any] = field(default_factory=lambda: {"steps": 4, "speed": 1, "seed": 9})
    rate: float = 0.5
    extra: dict[str, Any] = field(default_factory=dict)
    content: str | None = None
    upstream: dict[str, int] = field(default_factory=lambda: {"steps": 4, "speed": 1})
    code: dict[str, str] = field(default_factory=lambda: {"prompt.txt": "be fair"})
    arguments: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        made = {"content": self.content} if self.content is not None else self.upstream
        facts = [self.values, float(self.rate), self.extra, made, self.code, self.arguments]
        return json.dumps(facts, sort_keys=True)


def change(job: Job, rng: random.Random) -> Job:
    """The job with one change, which may happen to be none."""
    job = copy.deepcopy(job)
    kind = rng.choice(["values", "rate", "extra", "extra", "content", "upstream", "code", "args"])
    if kind == "values":
        job.values[rng.choice([*job.values])] = rng.randrange(1, 5)
    elif kind == "rate":
        job.rate = rng.choice([0.5, 1, 1.0, 2.5e-3])
    elif kind == "extra":
        change_tree(job.extra, rng)
    elif kind == "content":
        job.content = rng.choice([None, *WORDS])
    elif kind == "upstream":
        job.upstream[rng.choice([*job.upstream])] = rng.randrange(1, 4)
    elif kind == "code":
        name = rng.choice(["prompt.txt", "lib.py", "deep/t.jinja", "deep/b.py", "x.so"])
        if job.code.pop(name, None) is None or rng.random() < 0.6:
            job.code[name] = rng.choice(WORDS)
    else:
        job.arguments = rng.choice([(), ("x",), ("x", "y"), ("x y",)])
    return job


def change_tree(tree: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(KEYS)
    inner = [value for value in tree.values() if isinstance(value, dict)]
    if inner and rng.random() < 0.5:
        change_tree(rng.choice(inner), rng)
    elif rng.random() < 0.3:
        tree.pop(key, None)
    else:
        values: list[Any] = [*VALUES, {}, {rng.choice(KEYS): 1}, [], [1, "1"], [{"a.b": 1}]]
        tree[key] = copy.deepcopy(rng.choice(values))


class Speller:
    """One of the many ways to write a job down."""

    def __init__(self, mill: Any, rng: random.Random) -> None:
        self.mill, self.rng = mill, rng

    def maybe(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance

    def shuffled(self, table: dict[str, Any]) -> list[tuple[str, Any]]:
        pairs = [*table.items()]
        self.rng.shuffle(pairs)
        return pairs

    def value(self, value: Any) -> str:
        """A value in YAML, as flow."""
        if isinstance(value, dict):
            pairs = self.shuffled(value)
            return "{" + ", ".join(f"{json.dumps(k)}: {self.value(v)}" for k, v in pairs) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(self.value(item) for item in value) + "]"
        if value is None or isinstance(value, bool):
            word = {None: "null", True: "true", False: "false"}[value]
            return self.rng.choice([word, word.upper(), word.title()])
        if isinstance(value, int):
            return self.rng.choice([str(value), hex(value), f"+{value}"])
        if isinstance(value, float):
            return self.rng.choice([repr(value), f"{value:.6e}", f"+{value!r}"])
        plain = value.isalnum() and parse_value(value) == value
        return value if plain and self.maybe() else json.dumps(value, ensure_ascii=self.maybe())

    def config(self, job: Job) -> tuple[str, tuple[str, ...]]:
        """The file and the overrides of a job's config."""
        values, overrides = job.values, []
        keys = {"steps": values["steps"], "mill.speed": values["speed"], "seed": values["seed"]}
        cosmetic = {"pause": 0.25, "level": "debug", "gate": "/elsewhere"}
        keys |= {"rate": job.rate, "extra": job.extra}
        keys |= {key: value for key, value in cosmetic.items() if self.maybe(0.3)}
        own: dict[str, str] = {}
        base: dict[str, str] = {"rate": "7.5", "steps": "99"}  # what is laid over it counts
        for key, value in self.shuffled(keys):
            text = self.value(value)
            if key == "steps" and value == values["seed"] and self.maybe():
                text = "${seed}"
            if self.maybe(0.3):
                overrides.append(f"{key}={text}")
            else:
                inherited = self.maybe(0.3) and key not in base
                (base if inherited else own)[key] = text
        self.write("manifests/mill/bake/base.yaml", base, "")
        self.write("manifests/mill/bake/own.yaml", own, "defaults: base\n" + self.source(job))
        name = "own"
        if self.maybe(0.3):  # the same file, by a path and under another name
            name = str(self.mill.root / "elsewhere.yaml")
            shutil.copy(self.mill.root / "manifests/mill/bake/own.yaml", name)
        return name, tuple(overrides)

    def write(self, name: str, keys: dict[str, str], head: str) -> None:
        lines = [f"{key}: {text}" for key, text in self.shuffled(keys) if key != "mill.speed"]
        if "mill.speed" in keys:
            speed = keys["mill.speed"]
            lines.append(self.rng.choice([f"mill: {{speed: {speed}}}", f"mill:\n  speed: {speed}"]))
        comments = [f"# {self.rng.random()}", "", "   "]
        text = "\n".join(line for pair in zip(lines, comments * 9, strict=False) for line in pair)
        self.mill.write(name, head + text + "\n")

    def source(self, job: Job) -> str:
        """The ``inputs`` table: the upstream step, its overrides as keys or as tables."""
        upstream = job.upstream
        nested = {"steps": upstream["steps"], "mill": {"speed": upstream["speed"]}}
        dotted = {"mill.speed": upstream["speed"], "steps": upstream["steps"]}
        overrides = self.value(self.rng.choice([nested, dotted]))
        return f"inputs: {{input: {{step: mill/grind, slot: sack, overrides: {overrides}}}}}\n"

    def code(self, job: Job) -> None:
        """The files of the package, with new times, and beside them what does not count."""
        package = self.mill.root / "code/milling"
        for path in list(package.rglob("*")):
            if path.is_file() and path.name not in ("config.py", "recipe.py", "__init__.py"):
                path.unlink()
        for name, text in self.shuffled(job.code):
            os.utime(self.mill.write(f"code/milling/{name}", text), (0, self.rng.randrange(10**9)))
        for name in (".env", "__pycache__/x.pyc", "deep/.x.swp", "lib.py~", "../other/lib.py"):
            if self.maybe(0.2):
                self.mill.write(f"code/milling/{name}", str(self.rng.random()))

    def input(self, job: Job, store: Store) -> list[str]:
        """The words that give the input, if it is content: by option or key, by path or ref."""
        if job.content is None:
            return []
        folder = f"in{self.rng.randrange(4)}/{job.content}"
        path = self.mill.write(f"{folder}/sack.txt", job.content).parent
        os.utime(path / "sack.txt", (0, self.rng.randrange(10**9)))
        forms: list[Callable[[], str]] = [
            lambda: str(path),
            lambda: os.path.join(".", os.path.relpath(path), ""),
            lambda: store.adopt(path, kind="flour", name=f"sack-{job.content}").ref,
            lambda: store.adopt(path, kind="flour", name=f"other-{job.content}").digest,
        ]
        return [self.rng.choice(forms)()]


def plan(job: Job, mill: Any, rng: random.Random, context: PlanContext) -> str:
    """The run id of a job that is written down in one of many ways."""
    speller = Speller(mill, rng)
    speller.code(job)
    name, overrides = speller.config(job)
    store = Store(mill.root / rng.choice([".nemotron-style", "second-store"]))
    inputs = speller.input(job, store)
    if inputs and speller.maybe():
        overrides, inputs = (*overrides, f"mill.input_path={inputs[0]}"), []
    places = {"workdir": str(mill.root / "away")} if speller.maybe(0.2) else {}
    profile = {"env": {"LOG_LEVEL": rng.choice(WORDS)}, "setup": (rng.choice(WORDS),), **places}
    context = replace(
        context,
        store=store,
        profile=Profile(name=rng.choice(WORDS), **profile),
        detached=speller.maybe(0.03),
    )
    request = RunRequest(
        "mill/bake",
        config=name,
        overrides=overrides,
        inputs=tuple(f"input={ref}" for ref in inputs),
        arguments=job.arguments,
        name=rng.choice([None, None, "loaf"]),
    )
    return compile_pipeline(request, context=context).target.plan.run_id


def test_a_job_is_the_same_run_exactly_when_it_means_the_same(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mill.root / "code/milling/config.py"
    path.write_text("from typing import Any\n" + path.read_text() + SCHEMA)
    (mill.root / "away").mkdir()
    mill.write("manifests/mill/bake/own.yaml", "")
    rng, job, context = random.Random(SEED), Job(), mill.context()
    run_ids: dict[str, str] = {}
    meanings: dict[str, str] = {}
    for number in range(COUNT):
        if rng.random() < 0.7:
            job = change(job, rng)
        if rng.random() < 0.02:
            job = Job()
        for variable in ("LOG_LEVEL", "LANG", "TZ", "PYTHONHASHSEED"):
            monkeypatch.setenv(variable, rng.choice(WORDS))
        where = f"mutation {number}, seed {SEED}: {job}"
        run_id = plan(job, mill, rng, context)
        assert run_ids.setdefault(job.meaning, run_id) == run_id, f"needless rerun; {where}"
        other = meanings.setdefault(run_id, job.meaning)
        assert other == job.meaning, f"false reuse of {other}; {where}"
    print(f"{COUNT} mutations, {len(run_ids)} meanings, {len(meanings)} run ids")
