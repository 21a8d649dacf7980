"""What fills the input slots of a step.

An input may be named on the command line (``-i slot=REF``, or an override of the config key that
is bound to the slot: the same thing said twice), at that key in the config file, or in the
config's ``inputs:`` table, which may name a step that makes it. The first of these that says
something wins. Nothing here writes: a path is hashed where it lies and adopted at submission.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotron_style.runtime.catalog.manifest import Manifest, Need, Slot
from nemotron_style.runtime.config.model import InputSource
from nemotron_style.runtime.config.resolve import ResolvedConfig
from nemotron_style.runtime.errors import Problem, UsageError, raise_all, suggest
from nemotron_style.runtime.run.plan import get_key
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.ref import is_location
from nemotron_style.runtime.store.store import Store


@dataclass(frozen=True)
class Adoption:
    """Content from outside the store that a run needs in it, and what it will be called."""

    location: str
    kind: str
    name: str
    digest: str


@dataclass(frozen=True)
class Offer:
    """Something that could fill a slot: its kind and its identity.

    ``ref`` and ``digest`` are known for what exists already.
    """

    kind: str
    source: str
    ref: str = ""
    digest: str = ""
    adoption: Adoption | None = None


def read_given(
    words: Sequence[str], manifest: Manifest, *, beside: Sequence[str] = ()
) -> dict[str, str]:
    """``-i slot=REF`` options as a table; ``beside`` are the slots of services, ``name.slot``.

    Raises ``UsageError`` with every bad one.
    """
    slots = [*(slot.name for slot in manifest.consumes), *beside]
    given: dict[str, str] = {}
    problems: list[Problem] = []
    for word in words:
        slot, equals, ref = word.partition("=")
        if not (equals and slot and ref):
            problems.append(Problem(where="-i", what="is not slot=REF", got=repr(word)))
        elif slot not in slots:
            fix = suggest(slot, slots)
            allowed = ", ".join(slots) or "none"
            what = f"{manifest.id} has no such input"
            problems.append(Problem(where="-i", key=slot, what=what, allowed=allowed, fix=fix))
        elif given.setdefault(slot, ref) != ref:
            what = f"is given twice, as {given[slot]!r} and as {ref!r}"
            problems.append(Problem(where="-i", key=slot, what=what))
    raise_all(UsageError, problems)
    return given


def choose_sources(
    manifest: Manifest,
    config: ResolvedConfig,
    *,
    given: Mapping[str, str],
    overrides: Sequence[str],
) -> dict[str, InputSource]:
    """Where each slot that is filled comes from.

    Raises ``UsageError`` when ``-i`` and an override contradict each other.
    """
    raise_all(UsageError, list(_contradictions(manifest, config, given, overrides)))
    chosen: dict[str, InputSource] = {}
    for slot in manifest.consumes:
        at_key = get_key(config.values, slot.config_key) if slot.config_key else None
        if slot.name in given:
            chosen[slot.name] = InputSource(ref=given[slot.name])
        elif at_key is not None:
            chosen[slot.name] = InputSource(ref=str(at_key))
        elif slot.name in config.sources:
            chosen[slot.name] = config.sources[slot.name]
    return chosen


def offer_ref(ref: str, slot: Slot, *, store: Store) -> Offer:
    """The artifact that ``ref`` names, or what lies at the path or URI that it is.

    Raises ``RefError`` or ``InputError`` when there is nothing.
    """
    if not is_location(ref):
        return offer_artifact(store.resolve(ref))
    digest = digest_location(ref, kind=slot.kind)
    copies = store.by_digest(digest)
    known = next((copy for copy in copies if copy.kind == slot.kind), None)
    if known and known.record.producer is None:
        return offer_artifact(known)
    adoption = Adoption(ref, slot.kind, name_location(ref), digest)
    return Offer(slot.kind, digest, digest=digest, adoption=adoption)


def offer_artifact(artifact: Artifact) -> Offer:
    """An artifact of the store, identified by the run that made it or else by its content."""
    producer = artifact.record.producer
    source = f"run:{producer.run_id}/{producer.slot}" if producer else artifact.digest
    return Offer(artifact.kind, source, ref=artifact.ref, digest=artifact.digest)


def digest_location(location: str, *, kind: str) -> str:
    """The content digest of a path or URI; what is remote is fetched aside and thrown away."""
    if "://" not in location:
        return digest_tree(Path(location).expanduser())[0]
    with tempfile.TemporaryDirectory() as aside:
        return Store(aside).adopt(location, kind=kind, name="aside").digest


def name_location(location: str) -> str:
    """An artifact name for what is adopted from a path or URI: its last part, in lower case."""
    last = location.rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:80] or "adopted"


def explain_missing(
    slot: Slot, manifest: Manifest, producers: Sequence[str], *, need: Need | None = None
) -> Problem:
    """That a required input, of a service where there is a ``need``, has no source; what to do."""
    fix = f"give -i {need.name}.{slot.name}=REF" if need else f"give -i {slot.name}=REF"
    if need and need.config_key:
        fix += f", or {need.config_key} of a service that is there already"
    if producers:
        fix += f"; made by: {', '.join(producers)}"
    what = f"the input ({slot.kind}) is required and nothing fills it"
    return Problem(where=manifest.id, key=slot.name, what=what, fix=fix)


def _contradictions(
    manifest: Manifest, config: ResolvedConfig, given: Mapping[str, str], overrides: Sequence[str]
) -> Iterator[Problem]:
    typed = {word.partition("=")[0].lstrip("+").strip() for word in overrides if "=" in word}
    for slot in manifest.consumes:
        if slot.config_key not in typed or slot.name not in given or not slot.config_key:
            continue
        value = get_key(config.values, slot.config_key)
        if str(value) != given[slot.name]:
            what = f"{slot.config_key}={value} says otherwise; they mean the same input"
            got = given[slot.name]
            yield Problem(where="-i", key=slot.name, what=what, got=got, fix="give one of them")
