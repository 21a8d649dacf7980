"""The plan: everything about one run, resolved, before anything has happened.

A plan is pure data and round-trips through JSON. What can change the result stands in
``identity``; its hash is the ``fingerprint``, and that names the run. Where the run takes place
(profile, paths, names, process counts) stands beside it and never enters the fingerprint. The
text of a plan ends up in ``plan.json`` with a seal over all of it, and no worker runs another.

An input is identified by what makes it: ``run:<run id>/<slot>`` where a run does, its content
digest ``sha256:...`` where it was brought in from outside. So a plan is final before its inputs
exist, and a dry run on an empty store already shows the job.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from nemotron_style.runtime.errors import Problem, UsageError

MADE_BY_RUN = "run:"
RERUN_OF = "rerun_of"  # in the identity of a repetition: the run that it repeats
_BLANK = "0" * 64
# Two spaces of indent: a key of the plan itself, not one of its config.
_SEAL = re.compile(r'(?<=\n  "seal": ")[0-9a-f]{64}(?=",?\n)')


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class PlannedInput(_Frozen):
    """An input slot and the identity of what fills it.

    ``same_tokens_as`` is another slot, whose content must have the same tokens as this one's.
    """

    slot: str
    kind: str
    source: str
    config_key: str | None = None
    same_tokens_as: str | None = None

    @model_serializer(mode="wrap")
    def _leave_out_none(self, dump: Callable[[PlannedInput], dict[str, Any]]) -> dict[str, Any]:
        body = dump(self)
        # A plan is read by a copy of older code too, which refuses a key that it does not know.
        return body if self.same_tokens_as else {k: body[k] for k in body if k != "same_tokens_as"}

    @property
    def producer(self) -> tuple[str, str] | None:
        """The run id and the slot that make this input, or None when it was brought in."""
        if not self.source.startswith(MADE_BY_RUN):
            return None
        run_id, _, slot = self.source.removeprefix(MADE_BY_RUN).partition("/")
        return run_id, slot


class PlannedOutput(_Frozen):
    """An output slot and the artifact name that it will be committed under."""

    slot: str
    kind: str
    name: str
    required: bool = True


class PlannedMount(_Frozen):
    """``source`` of the host, or of a ``volume``, at ``target`` in the image."""

    source: str
    target: str
    options: tuple[str, ...] = ()
    volume: str | None = None


class Snapshot(_Frozen):
    """A copy of the step's code, kept under its digest; ``facts`` say which commit it was."""

    path: str
    digest: str
    facts: dict[str, str] = {}


class Plan(_Frozen):
    """One run, named by its ``fingerprint``. ``store`` and ``workdir`` are absolute paths.

    ``python`` starts the worker. ``site`` holds what only the executor understands, under the
    names of the profile's keys. ``records`` is where the command line keeps the run when it does
    not see ``store``. ``notes`` tell which values of the profile were overridden.
    ``services`` run beside the step, by the names of the manifest's ``[[needs]]``; the plan of
    such a one says ``beside`` which run (``<run id>/services/<name>``). What a service consumes is
    an input of the step too, under ``<name>.<slot>``. ``files`` were compiled for the job.
    ``root`` is the URL of a store in a bucket; ``store`` is then the folder that has its runs.
    """

    schema_version: Literal[1] = 1
    run_id: str
    step: str
    config_name: str
    config: dict[str, Any]
    inputs: tuple[PlannedInput, ...]
    outputs: tuple[PlannedOutput, ...]
    entrypoint: str
    config_class: str
    launch: Literal["python", "torchrun", "ray"]
    resources: dict[str, Any]
    python: str
    image: str | None
    mounts: tuple[PlannedMount, ...] = ()
    snapshot: Snapshot | None = None
    env: dict[str, str]
    secrets: tuple[str, ...]
    setup: tuple[str, ...] = ()
    profile: str
    executor: str
    detached: bool = False
    site: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    store: str
    root: str | None = None
    records: str | None = None
    workdir: str
    arguments: tuple[str, ...]
    identity: dict[str, Any]
    fingerprint: str
    services: dict[str, Plan] = {}
    beside: str | None = None
    files: dict[str, str] = {}

    @property
    def where(self) -> str:
        """The place of a problem with the plan's profile."""
        return f"profile {self.profile}"

    @property
    def rerun_of(self) -> str:
        """The run that this one repeats (``runs rerun``); empty for any other."""
        return str(self.identity.get(RERUN_OF, ""))

    @property
    def processes(self) -> int:
        """Processes on each machine."""
        return int(self.resources.get("processes", 1))

    @property
    def nodes(self) -> int:
        """Machines."""
        return int(self.resources.get("nodes", 1))

    @property
    def has_ranks(self) -> bool:
        """Whether torchrun starts its processes; one process alone needs no torchrun."""
        return self.launch == "torchrun" and self.processes * self.nodes > 1

    @property
    def is_service(self) -> bool:
        """Whether it runs until it is stopped; what makes no artifact does."""
        return not self.outputs

    @property
    def is_seen(self) -> bool:
        """Whether the command line sees the folder that the job writes to."""
        return "upload" not in self.site

    @property
    def run_dir(self) -> Path:
        """The run's folder as the worker sees it; a service's lies in that of its step."""
        return Path(self.store, "runs", self.beside or self.run_id)

    @property
    def record_dir(self) -> Path:
        """The run's folder as the command line sees it; nearly always the same."""
        return Path(self.records or self.store, "runs", self.beside or self.run_id)

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, dump: Callable[[Plan], dict[str, Any]]) -> dict[str, Any]:
        body = dump(self)  # fields that came later; the text of most plans is what it was
        absent = [name for name in ("files", "root") if not getattr(self, name)]
        return {key: body[key] for key in body if key not in absent}

    def to_json(self) -> str:
        """The canonical text with its seal: sorted keys, two spaces, one newline at the end."""
        body = self.model_dump(mode="json") | {"seal": _BLANK}
        text = json.dumps(body, indent=2, sort_keys=True) + "\n"
        return _SEAL.sub(_hash(text), text, count=1)


def identify(identity: Mapping[str, Any]) -> str:
    """The fingerprint of an identity: SHA-256 over its canonical JSON, in hex."""
    return _hash(json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True))


def name_run(step: str, fingerprint: str) -> str:
    """The run id: the step, and enough of the fingerprint to tell runs apart."""
    return f"{step.replace('/', '-')}-{fingerprint[:12]}"


def parse_plan(text: str, *, where: str, is_sealed: bool = False) -> Plan:
    """Read a plan back. Raises ``UsageError`` when it is none, or was changed since.

    Plans of earlier versions have no seal. They can be read, and with ``is_sealed`` they are
    refused too.
    """
    body = _parse_json(text, where=where)
    seal = body.pop("seal", None)
    try:
        plan = Plan.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(Problem(where=where, key=key, what=first["msg"])) from None
    fix = "run the step again instead of editing its plan"
    for each in (plan, *plan.services.values()):
        fingerprint = identify(each.identity)
        if (each.fingerprint, each.run_id) != (fingerprint, name_run(each.step, fingerprint)):
            what = "the plan was changed after it was made"
            raise UsageError(Problem(where=where, key="fingerprint", what=what, fix=fix))
    if seal is None and is_sealed:
        what = "the plan has no seal: it was changed, or made by an earlier version"
        raise UsageError(Problem(where=where, key="seal", what=what, fix="run the step again"))
    if seal is not None and seal != _hash(_SEAL.sub(_BLANK, text, count=1)):
        what = "the plan was changed after it was made"
        raise UsageError(Problem(where=where, key="seal", what=what, fix=fix))
    return plan


def load_plan(path: Path) -> Plan:
    """The plan in a ``plan.json``. Raises ``UsageError`` when it cannot be read or was changed."""
    return parse_plan(_read(path), where=str(path))


def load_sealed_plan(path: Path) -> Plan:
    """The plan that a worker may execute: whole, and that of the run in whose folder it lies.

    Raises ``UsageError`` for any other.
    """
    plan = parse_plan(_read(path), where=str(path), is_sealed=True)
    if path.absolute().parent.name != plan.run_id:
        what, got, fix = "is the plan of another run", plan.run_id, "run the step again"
        raise UsageError(Problem(where=str(path), key="run_id", what=what, got=got, fix=fix))
    return plan


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(Problem(where=str(path), what=error.strerror or str(error))) from None
    except UnicodeDecodeError:
        raise UsageError(Problem(where=str(path), what="is not UTF-8 text")) from None


def _parse_json(text: str, *, where: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(Problem(where=where, what=f"is not JSON: {error}")) from None
    if not isinstance(body, dict):
        raise UsageError(Problem(where=where, what="is not a plan"))
    return body


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
