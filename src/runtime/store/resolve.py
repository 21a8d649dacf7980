"""From a ref to the artifact it names, by keys and directory names alone."""

from __future__ import annotations

from itertools import islice

from nemotron_style.runtime.errors import ArtifactError, Problem, RefError, suggest
from nemotron_style.runtime.store.commit import read_decision
from nemotron_style.runtime.store.index import entries, read_digests, read_refs
from nemotron_style.runtime.store.layout import Layout, is_committed, versions_in
from nemotron_style.runtime.store.record import Artifact, load_artifact
from nemotron_style.runtime.store.ref import DigestRef, NamedRef, OutputRef, parse_ref, strip_user

_SHOWN = 8
_LIST = "`nemotron-style artifacts list` shows what there is"


def resolve(layout: Layout, ref: str) -> Artifact:
    """The artifact that ``ref`` names; see :meth:`Store.resolve`."""
    parsed = parse_ref(ref)
    if isinstance(parsed, NamedRef):
        return _resolve_name(layout, parsed)
    if isinstance(parsed, DigestRef):
        return _resolve_digest(layout, parsed)
    artifact = output_of(layout, parsed.run_id, parsed.slot)
    if artifact is None:
        raise _unknown(ref, _outputs(layout, parsed))
    return artifact


def output_of(layout: Layout, run_id: str, slot: str) -> Artifact | None:
    """What a run committed from a slot; None when it did not, or not to the end."""
    try:
        decided = read_decision(layout, layout.output(run_id, slot))
    except (FileNotFoundError, ArtifactError):
        return None
    # What stands at the decided version must be what was decided, not merely be called so.
    artifact = find(layout, decided.ref)
    return artifact if artifact and artifact.record == decided else None


def by_digest(layout: Layout, digest: str) -> list[Artifact]:
    """Every artifact with exactly this content, the first committed first."""
    artifacts = [find(layout, ref) for ref in read_refs(layout, digest)]
    same = (artifact for artifact in artifacts if artifact and artifact.digest == digest)
    return sorted(same, key=_age)


def find_adopted(
    layout: Layout, uri: str, kind: str, name: str, *, identity: str = ""
) -> Artifact | None:
    """The newest artifact of this kind and name that was adopted from a URI; asks the store only.

    With ``identity``, one that was adopted when the URI held exactly that.
    """
    for version in versions_in(layout.name(name)):
        artifact = find(layout, f"{name}:v{version}")
        origin = artifact.record.origin if artifact else None
        if artifact is None or origin is None or identity not in ("", origin.identity):
            continue
        if (artifact.kind, origin.source) == (kind, strip_user(uri)):
            return artifact
    return None


def find(layout: Layout, ref: str) -> Artifact | None:
    """The artifact ``name:v3``, or None when it is not there or its record is not readable."""
    try:
        return load_artifact(layout.place(ref))
    except (FileNotFoundError, ArtifactError, RefError):  # a key may have any name
        return None


def _resolve_name(layout: Layout, ref: NamedRef) -> Artifact:
    directory = layout.name(ref.name)
    if ref.version and is_committed(directory / f"v{ref.version}"):
        return load_artifact(directory / f"v{ref.version}")
    known = (each for each in versions_in(directory) if is_committed(directory / f"v{each}"))
    newest = next(known, None)
    if newest is None:
        raise _unknown(ref.name, [entry.name for entry in entries(layout.artifacts)])
    if ref.version is None:
        return load_artifact(directory / f"v{newest}")
    shown = [newest, *islice(known, _SHOWN)]
    allowed = ", ".join(f"v{number}" for number in shown[:_SHOWN])
    allowed += ", …" if len(shown) > _SHOWN else ""
    what = "has no such version"
    raise RefError(Problem(where=ref.name, what=what, got=f"v{ref.version}", allowed=allowed))


def _resolve_digest(layout: Layout, ref: DigestRef) -> Artifact:
    # A key may stand without an artifact, after a commit that was cut off.
    digests = read_digests(layout, ref.prefix)
    known = {digest: artifacts for digest in digests if (artifacts := by_digest(layout, digest))}
    text = f"sha256:{ref.prefix}"
    if not known:
        what = "no artifact has a digest that begins so"
        raise RefError(Problem(what=what, got=text, fix=_LIST))
    if len(known) > 1:
        refs = ", ".join(f"{each[0].ref} ({digest[:19]})" for digest, each in known.items())
        what, fix = "more than one digest begins so", "give more digits"
        raise RefError(Problem(what=what, got=text, allowed=refs, fix=fix))
    (artifacts,) = known.values()
    return artifacts[0]


def _outputs(layout: Layout, ref: OutputRef) -> list[str]:
    runs = layout.index / "output"
    slots = [f"run:{ref.run_id}/{entry.name}" for entry in entries(runs / ref.run_id)]
    return slots or [f"run:{entry.name}/{ref.slot}" for entry in entries(runs)]


def _unknown(ref: str, known: list[str]) -> RefError:
    fix = suggest(ref, known) or _LIST
    return RefError(Problem(what="no such artifact", got=repr(ref), fix=fix))


def _age(artifact: Artifact) -> tuple[str, str, int]:
    return artifact.record.created, artifact.record.name, artifact.record.version
