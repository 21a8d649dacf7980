"""What fills the input slots of a step.

An input may be named on the command line (``-i slot=REF``, or an override of the config key that
is bound to the slot, which means the same), at that key in the config file, or in the config's
``inputs:`` table, which may name a step that makes it. The first of these that is set wins.
A path is hashed in place and adopted at submission; nothing here writes, but for a URI that is
fetched in order to be run with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.content_kind import choose_kind, list_names, usable_kinds
from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.catalog.other_keys import meant_keys
from nemotron_style.runtime.catalog.slot import Slot
from nemotron_style.runtime.config.model import InputSource
from nemotron_style.runtime.config.resolve import ResolvedConfig
from nemotron_style.runtime.errors import (
    ConfigError,
    InputError,
    Problem,
    RefError,
    UsageError,
    raise_all,
    suggest,
)
from nemotron_style.runtime.paths import expand_path
from nemotron_style.runtime.planning.request import PlanContext
from nemotron_style.runtime.run.plan import MADE_BY_RUN
from nemotron_style.runtime.secrets.redact import redact
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.ref import is_location
from nemotron_style.runtime.validation import get_key

ARTIFACT_WORD = re.compile(r"[a-z0-9_-]+")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
UNFETCHED, UNREAD, MISSING = "uri:", "path:", "missing:"
"""Begin the source of an input whose content a dry run does not know."""


@dataclass(frozen=True)
class Adoption:
    """Content from outside the store that a run needs, and the artifact name it will get."""

    location: str
    kind: str
    name: str
    digest: str


@dataclass(frozen=True)
class ResolvedInput:
    """What fills a slot: its kind and its identity (``source``, as a plan writes it).

    ``ref`` and ``digest`` are known only for content that exists already. ``remark`` is what to
    tell about it before it is used. ``pending`` says why its content, which decides which run this
    is, is not known yet. ``made_from`` is what a planned conversion makes it from.
    """

    kind: str
    source: str
    ref: str = ""
    digest: str = ""
    adoption: Adoption | None = None
    remark: str = ""
    pending: str = ""
    made_from: ResolvedInput | None = None

    @property
    def outside(self) -> bool:
        """Whether no run of ours has made this content, nor will."""
        return not self.source.startswith(MADE_BY_RUN)


def parse_input_options(
    words: Sequence[str], manifest: Manifest, *, service_slots: Sequence[str] = ()
) -> dict[str, str]:
    """The ``-i slot=REF`` options as a table of refs by slot.

    ``service_slots`` are the inputs of the step's services, written ``name.slot``. Raises
    ``UsageError`` with every bad option.
    """
    slots = [*(slot.name for slot in manifest.consumes), *service_slots]
    refs: dict[str, str] = {}
    problems: list[Problem] = []
    for word in words:
        slot, equals, ref = word.partition("=")
        if not (equals and slot and ref):
            problems.append(Problem(where="-i", what="is not slot=REF", got=repr(word)))
        elif slot not in slots:
            fix = manifest.explain_absence(slot) or suggest(slot, slots)
            allowed = ", ".join(slots) or "none"
            what = f"{manifest.id} has no such input"
            problems.append(Problem(where="-i", key=slot, what=what, allowed=allowed, fix=fix))
        elif refs.setdefault(slot, ref) != ref:
            what = f"is given twice, as {refs[slot]!r} and as {ref!r}"
            problems.append(Problem(where="-i", key=slot, what=what))
    raise_all(UsageError, problems)
    return refs


def choose_sources(
    manifest: Manifest,
    config: ResolvedConfig,
    *,
    refs: Mapping[str, str],
    overrides: Sequence[str] = (),
) -> dict[str, InputSource]:
    """Where the content of each filled slot comes from; ``refs`` are those of ``-i`` options.

    Raises ``UsageError`` when an option and an override contradict each other.
    """
    words = (word.partition("=") for word in overrides if "=" in word)
    typed = {key.lstrip("+").strip(): value for key, _, value in words}
    meant = meant_keys(manifest)
    overridden = {meant.get(key, key): value for key, value in typed.items()}
    sources: dict[str, InputSource] = {}
    problems: list[Problem] = []
    for slot in manifest.consumes:
        key, ref = slot.config_key, refs.get(slot.name)
        value = get_key(config.values, key) if key else None
        if ref is not None:
            sources[slot.name] = InputSource(ref=ref)
            if key in overridden and str(value) != ref and overridden[key] != ref:
                what = f"{key}={overridden[key]} says otherwise; they mean the same input"
                fix = "give one of them"
                problems.append(Problem(where="-i", key=slot.name, what=what, got=ref, fix=fix))
        elif value is not None and manifest.is_content(value):
            sources[slot.name] = InputSource(ref=str(value))
        elif slot.name in config.sources:
            sources[slot.name] = config.sources[slot.name]
    raise_all(UsageError, problems)
    return sources


def choose_output(
    maker: Manifest, slot: Slot, name: str | None, *, where: str, catalog: Catalog
) -> Slot:
    """The output of ``maker`` that fills ``slot``: the named one, or the only one that fits."""
    if name is not None:
        named = maker.produced(name)
        if named is None:
            names = [one.name for one in maker.produces]
            what, allowed = f"{maker.id} has no output {name!r}", ", ".join(names)
            fix = suggest(name, names)
            raise ConfigError(Problem(where=where, what=what, allowed=allowed, fix=fix))
        return named
    kinds = catalog.kinds
    fits = [one for one in maker.produces if kinds.accepts(slot.kind, one.kind)]
    fits = fits or [one for one in maker.produces if kinds.conversion(one.kind, slot.kind)]
    if len(fits) == 1:
        return fits[0]
    allowed = ", ".join(f"{one.name} ({one.kind})" for one in maker.produces)
    how_many = "more than one output" if fits else "no output"
    what = f"{maker.id} makes {how_many} that fits {slot.kind}"
    raise ConfigError(Problem(where=where, what=what, allowed=allowed, fix="name it with slot:"))


def resolve_ref(ref: str, slot: Slot, *, context: PlanContext) -> ResolvedInput:
    """The artifact that ``ref`` names, or the content at the path or URI that it is.

    A bare file name is a path where no artifact has that name. The kind of content is what it
    looks like, which may be one that has to be converted for the slot. A URI is brought into the
    store here, with ``context.fetch``: only its content says which run this is. Without, nothing
    is asked of the network: the content is what was adopted from it last, or not known yet. Nor is
    that of a path that this machine cannot read, in a provisional plan.

    Raises ``RefError`` or ``InputError`` when there is none, and ``UsageError`` when it could be
    either, or is of a kind that cannot fill the slot.
    """
    if not is_location(ref):
        is_file = os.path.exists(ref)
        try:
            artifact = context.store.resolve(ref)
        except RefError as error:
            if not is_file:
                raise _explain_unknown(ref, error) from None
        else:
            if is_file and ":" not in ref:
                what = f"is an artifact ({artifact.ref}) and a file or folder here"
                fix = f"write {ref}:latest for the artifact, ./{ref} for the file"
                raise UsageError(Problem(what=what, got=repr(ref), fix=fix))
            return describe_artifact(artifact)
    ref = re.sub(r"\A(file|local)://", "", ref)
    if "://" in ref:
        return resolve_uri(ref, slot, context=context)
    return resolve_path(ref, slot, context=context)


def _explain_unknown(ref: str, error: RefError) -> RefError:
    """The error for a word that names no artifact: a file may be meant that is called otherwise."""
    near = suggest(ref, os.listdir())
    if ":" in ref or (not near and ARTIFACT_WORD.fullmatch(ref)):
        return error
    what = "there is neither an artifact nor a file of this name"
    return RefError(Problem(what=what, got=repr(ref), fix=near or error.problems[0].fix))


def resolve_path(ref: str, slot: Slot, *, context: PlanContext) -> ResolvedInput:
    """The content at a path; see :func:`resolve_ref`."""
    path = expand_path(ref)
    kind = slot.kind
    if path.exists() and os.access(path, os.R_OK):  # what cannot fill the slot is not hashed
        kind = choose_kind(list_names(path), slot, context.catalog, location=ref)
    try:
        digest = digest_tree(path)[0]
    except InputError as error:
        if os.access(path, os.R_OK):
            raise
        fix = "give the command where it can be read, such as on the cluster's login node"
        if HUB_NAME.fullmatch(ref) and not path.parent.exists():
            more = "" if kind.startswith("checkpoint") else " --repo-type dataset"
            command = f"hf download {ref}{more} --local-dir FOLDER"
            fix = f"nothing is fetched from a hub by its name: {command}, then give FOLDER"
        if not context.provisional:
            raise InputError([replace(one, fix=one.fix or fix) for one in error.problems]) from None
        remark, pending = f"{error}; to submit, {fix}", f"{ref} is not readable from here"
        return ResolvedInput(kind, UNREAD + ref, remark=remark, pending=pending)
    copies = context.store.by_digest(digest)
    known = next((copy for copy in copies if copy.kind == kind), None)
    if known and known.record.producer is None:
        return describe_artifact(known)
    adoption = Adoption(ref, kind, name_location(ref), digest)
    return ResolvedInput(kind, digest, digest=digest, adoption=adoption)


def resolve_uri(uri: str, slot: Slot, *, context: PlanContext) -> ResolvedInput:
    """The content of a URI; see :func:`resolve_ref`."""
    name, store, catalog = name_location(uri), context.store, context.catalog
    if context.fetch:
        kind = choose_kind(store.list_location(uri), slot, catalog, location=redact(uri))
        return describe_artifact(store.adopt(uri, kind=kind, name=name))
    for kind in usable_kinds(slot, catalog):
        if known := store.find_adopted(uri, kind=kind, name=name):
            remark = f"as it was at {known.record.created}; the run asks whether it changed"
            return replace(describe_artifact(known), remark=remark)
    adoption = Adoption(redact(uri), slot.kind, name, digest="")
    source = f"{UNFETCHED}{adoption.location}"
    pending = f"{adoption.location} is fetched when it is run"
    return ResolvedInput(slot.kind, source, adoption=adoption, pending=pending)


def describe_artifact(artifact: Artifact) -> ResolvedInput:
    """An artifact as an input, identified by the run that made it or else by its content."""
    producer = artifact.record.producer
    source = f"run:{producer.run_id}/{producer.slot}" if producer else artifact.digest
    return ResolvedInput(artifact.kind, source, ref=artifact.ref, digest=artifact.digest)


def name_location(location: str) -> str:
    """An artifact name for adopted content: the last part of its path or URI, in lower case."""
    last = location.rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:80] or "adopted"
