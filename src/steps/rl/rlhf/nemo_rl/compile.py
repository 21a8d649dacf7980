"""Our config as one complete YAML of NeMo-RL, in which nothing is left to a default.

    config -> names of the version (adapt) -> known keys (check) -> base values -> derived values
           -> GPUs (placement) -> rules -> nemo_rl.yaml

It is pure but for a look at the rows of inputs that exist already; what only the job knows stands
in the YAML as a variable of its environment.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.data.jsonl import find_jsonl
from nemotron_style.steps.rl.rlhf.nemo_rl import derive, reward_model
from nemotron_style.steps.rl.rlhf.nemo_rl.adapt import adapt
from nemotron_style.steps.rl.rlhf.nemo_rl.check import check_keys
from nemotron_style.steps.rl.rlhf.nemo_rl.config import Config
from nemotron_style.steps.rl.rlhf.nemo_rl.draft import (
    ABSENT,
    Derived,
    Draft,
    find,
    merge,
    put,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.environment import compile_environment
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE, JOB_FILE
from nemotron_style.steps.rl.rlhf.nemo_rl.placement import Placement, miss_gpus, place
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import advise, check
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts, RowFacts
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rows import read_row_facts
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import keys_of
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

SCRIPT = "examples/nemo_gym/run_grpo_nemo_gym.py"
"""Of NeMo-RL, run as it is, where NeMo-Gym gives the rewards."""
OF_THIS_PROJECT = ("backend", "seed", "nemo_rl")
MODEL, TRAIN, VALIDATION = (
    "policy.pretrained_checkpoint.path",
    "data.train.data_path",
    "data.validation.data_path",
)
"""Keys that the slots of the step are bound to."""
RAY_WORKER_PORTS = (10002, 11000)
"""Of the cluster that the launcher forms."""
LEAST_MINUTES = 30.0
"""Of silence before a run counts as stalled: loading, compiling graphs, a long rollout."""


@dataclass(frozen=True)
class Compiled:
    """``values`` are the whole config, nested; ``told`` are lines about what was not kept.

    ``advice`` are lines about what NeMo-RL takes and a run hardly wants.
    """

    version: Version
    script: str
    values: dict[str, Any]
    derived: tuple[Derived, ...]
    told: tuple[str, ...]
    placement: Placement
    stall_minutes: float
    problems: tuple[Problem, ...]
    advice: tuple[str, ...]


def compile_job(config: Config, site: JobSite) -> CompiledJob:
    """The files of a NeMo-RL job, the lines that explain them, and the nodes that it takes."""
    version, problems = choose_version(config, site)
    if version is None:
        return CompiledJob(problems=tuple(problems))
    compiled = compile_values(config, site)
    job = {
        "version": str(version),
        "image": config.nemo_rl.image or site.image,
        "script": compiled.script,
        "stall_minutes": compiled.stall_minutes,
        "environment": compile_environment(config, version),
    }
    placed = compiled.placement
    return CompiledJob(
        files={CONFIG_FILE: write_yaml(compiled), JOB_FILE: json.dumps(job, indent=1) + "\n"},
        notes=tuple(_notes(compiled, site)),
        resources={"nodes": placed.nodes, "gpus": placed.gpus},
        problems=compiled.problems,
        identity={"NeMo-RL": str(version)},
    )


def compile_values(config: Config, site: JobSite, version: Version | None = None) -> Compiled:
    """The complete config for a version; that of ``config`` or of the image's tag where None.

    Raises ValueError where no version is known.
    """
    version = version or choose_version(config, site)[0]
    if version is None:
        raise ValueError("no version of NeMo-RL")
    given = config.model_dump(mode="json")
    given = {name: value for name, value in given.items() if name not in OF_THIS_PROJECT}
    draft = Draft(version, _escape(given))
    allows_train = config.data is not None and config.data.allow_train_as_validation is True
    adapt(draft)
    slots = _take_slots(draft)
    gym = reward_model.choose_rewards(draft)
    draft.problems += check_keys(draft.given, version)
    draft.values = merge(_base(version, gym=gym), draft.given)
    draft.problems += _find_missing(draft, site)
    draft.derive("grpo.seed", config.seed, "seed")
    derive.derive_start(draft, site.inputs.get("model") or slots.get(MODEL))
    derive.derive_backend(draft)
    derive.derive_batch(draft, gym=gym)
    derive.derive_advantages(draft)
    validates = "validation" in site.inputs or VALIDATION in slots
    derive.derive_validation(draft, own_data=validates, allows_train=allows_train, gym=gym)
    derive.derive_optimizer(draft)
    derive.derive_generation(draft, gym=gym)
    derive.derive_ports(draft, gym=gym)
    if gym:
        seconds, placed = derive.derive_judge(draft), place(draft, site)
    else:
        seconds, placed = 0, reward_model.derive_reward_model(draft, site)
    values = _sorted(draft.values)
    facts = Facts(
        version,
        site.executor,
        nodes=placed.nodes,
        gpus_per_node=placed.gpus,
        ray_worker_ports=RAY_WORKER_PORTS,
        image=config.nemo_rl.image or site.image,
        variables=frozenset(compile_environment(config, version)) | (site.variables or frozenset()),
        knows_all_variables=site.variables is not None,
        publishes_megatron=True,
        rows=_read_rows(site),
    )
    told = {problem.key for problem in draft.problems}
    broken = [problem for problem in check(values, facts) if problem.key not in told]
    stall = config.nemo_rl.stall_minutes or max(LEAST_MINUTES, 10.0 + seconds / 60)
    return Compiled(
        version=version,
        script=SCRIPT if gym else reward_model.SCRIPT,
        values=values,
        derived=tuple(draft.derived),
        told=tuple(draft.told),
        placement=placed,
        stall_minutes=round(stall, 1),
        problems=(*draft.problems, *broken),
        advice=(*advise(values, facts), *(() if gym else (reward_model.DOUBLE_TEMPLATE,))),
    )


def _take_slots(draft: Draft) -> dict[str, str]:
    """What was given for slots, by key, taken out: in the YAML a variable of the job stands there.

    The kind that such a path is taken for stands beside it.
    """
    kinds = {MODEL: "checkpoint_hf", TRAIN: "prompts_jsonl", VALIDATION: "prompts_jsonl"}
    taken = {key: kind for key, kind in kinds.items() if draft.take(key) not in (ABSENT, None)}
    if find(draft.given, "policy.pretrained_checkpoint") == {}:
        draft.take("policy.pretrained_checkpoint")
    return taken


def choose_version(config: Config, site: JobSite) -> tuple[Version | None, list[Problem]]:
    """The NeMo-RL that ``nemo_rl.version`` names, or the image's tag; and why there is none."""
    if config.nemo_rl.version is not None:
        return config.nemo_rl.version, []
    image = config.nemo_rl.image or site.image
    tag = re.search(r"v\d+\.\d+\.\d+(?!\d)", image or "")
    allowed = ", ".join(Version)
    if tag and tag[0] in list(Version):
        return Version(tag[0]), []
    what = "the image's tag names no NeMo-RL that is known" if image else "there is no image"
    fix = "name an image of it (nemo_rl.image, or the profile's image), or say which one it holds: "
    fix += f"nemo_rl.version is one of {allowed}"
    return None, [Problem(key="nemo_rl.version", what=what, got=image or "", fix=fix)]


def write_yaml(compiled: Compiled) -> str:
    """The config as YAML, for NeMo-RL's own loader; a comment says why a derived value is so."""
    import yaml

    head = f"# For NeMo-RL {compiled.version}: {compiled.script}. Every key is written out.\n"
    text = yaml.safe_dump(compiled.values, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    reasons = {each.key: each.why for each in compiled.derived}
    return head + "\n".join(_give_reasons(text, reasons)) + "\n"


def _give_reasons(text: str, reasons: Mapping[str, str]) -> Iterator[str]:
    """The lines of dumped YAML, each value on one; the indentation tells the tables above a key."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if match := re.match(r"( *)([\w'\"-][^:]*):( |$)", line):
            depth = len(match[1])
            above = [*(one for one in above if one[0] < depth), (depth, match[2].strip("'\""))]
            why = reasons.get(".".join(name for _, name in above))
            yield f"{line}  # {why}" if why else line
        else:
            yield line


def _notes(compiled: Compiled, site: JobSite) -> Iterator[str]:
    yield f"NeMo-RL {compiled.version}, {compiled.script}"
    if compiled.version == Version.V0_8_0:
        yield "v0.8.0: what was not seen of it is taken from the main branch before it (inferred)"
    yield from ("GPUs:", *(f"  {line}" for line in compiled.placement.lines()))
    yield from miss_gpus(compiled.placement, site)
    if compiled.told:
        yield from ("Not as it was written:", *(f"  {line}" for line in compiled.told))
    if compiled.advice:
        yield from ("Worth knowing:", *(f"  {line}" for line in compiled.advice))


def _find_missing(draft: Draft, site: JobSite) -> Iterator[Problem]:
    """What the step cannot be without: a policy to align, and what gives the rewards."""
    if not draft.get("policy.model_name") and not site.inputs.get("model"):
        fix = "set it, or RL_POLICY_MODEL, or give the input 'model'"
        yield Problem(key="policy.model_name", what="there is no policy to align", fix=fix)
    yield from reward_model.check_rewards(draft, site)


def _read_rows(site: JobSite) -> RowFacts:
    """The prompts as they are, before the job brings them into NeMo-Gym's form."""
    files: list[Path | None] = []
    for slot in ("prompts", "validation"):
        try:
            files.append(find_jsonl(site.files[slot]) if slot in site.files else None)
        except InputError:  # the job says what is wrong with it
            files.append(None)
    return read_row_facts(files[0], files[1])


def _base(version: Version, *, gym: bool) -> dict[str, Any]:
    """The values of keys that nobody gave, as far as the version knows them."""
    known, values = keys_of(version), {}
    base = _read_base("base")
    if not gym:
        base = reward_model.values_without_gym(base, _read_base("base_without_gym"))
    for key, value in base.items():
        if version >= Version.V0_8_0:
            key = key.replace("policy.dtensor_cfg.", "policy.automodel_cfg.")
        row = known.get(key)
        if row is not None and (row.need or not row.dead):
            put(values, key, value)
    return values


@cache
def _read_base(name: str) -> Mapping[str, Any]:
    path = resource_files("nemotron_style.steps.rl.rlhf.nemo_rl.tables") / f"{name}.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _escape(values: Any) -> Any:
    """``values`` with every ``${`` in a text kept from OmegaConf: ours alone are to be filled."""
    if isinstance(values, str):
        return values.replace("${", "\\${")
    if isinstance(values, Mapping):
        return {key: _escape(value) for key, value in values.items()}
    return [_escape(one) for one in values] if isinstance(values, list) else values


def _sorted(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _sorted(values[key]) for key in sorted(values)}
    return values
