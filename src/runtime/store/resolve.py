"""From a ref to the artifact it names, by keys and directory names alone."""

from __future__ import annotations

from nemotron_style.runtime.errors import ArtifactError, Problem, RefError, suggest
from nemotron_style.runtime.store.index import entries, read_digests, read_refs
from nemotron_style.runtime.store.layout import Layout, is_committed, versions_in
from nemotron_style.runtime.store.record import Artifact, load_artifact, parse_record
from nemotron_style.runtime.store.ref import DigestRef, NamedRef, OutputRef, parse_ref

_SHOWN = 8


def resolve(layout: Layout, ref: str) -> Artifact:
    """The artifact that ``ref`` names.

    Raises:
        RefError: none, or more than one; near matches are named.
        ArtifactError: its record is not the one that was committed.
    """
    parsed = parse_ref(ref)
    if isinstance(parsed, NamedRef):
        return _resolve_name(layout, parsed)
    if isinstance(parsed, DigestRef):
        return _resolve_digest(layout, parsed)
    found = output_of(layout, parsed.run_id, parsed.slot)
    if found is None:
        raise _unknown(ref, _outputs(layout, parsed))
    return found


def output_of(layout: Layout, run_id: str, slot: str) -> Artifact | None:
    """What a run committed from a slot, or None."""
    key = layout.output(run_id, slot)
    try:
        return find(layout, parse_record(key.read_bytes(), where=str(key)).ref)
    except (FileNotFoundError, ArtifactError):
        return None


def by_digest(layout: Layout, digest: str) -> list[Artifact]:
    """Every artifact with exactly this content, the first committed first."""
    found = [find(layout, ref) for ref in read_refs(layout, digest)]
    return sorted((artifact for artifact in found if artifact), key=_age)


def find(layout: Layout, ref: str) -> Artifact | None:
    """The artifact ``name:v3``, or None when it is not there or its record is not readable."""
    parsed = parse_ref(ref)
    assert isinstance(parsed, NamedRef)
    assert parsed.version is not None
    try:
        return load_artifact(layout.version(parsed.name, parsed.version))
    except (FileNotFoundError, ArtifactError):
        return None


def _resolve_name(layout: Layout, ref: NamedRef) -> Artifact:
    directory = layout.name(ref.name)
    known = [
        version for version in versions_in(directory) if is_committed(directory / f"v{version}")
    ]
    if not known:
        raise _unknown(ref.name, [entry.name for entry in entries(layout.artifacts)])
    version = known[0] if ref.version is None else ref.version
    if version not in known:
        listed = ", ".join(f"v{number}" for number in known[:_SHOWN])
        raise RefError(
            Problem(
                where=ref.name,
                what="has no such version",
                got=f"v{version}",
                allowed=listed + (", …" if len(known) > _SHOWN else ""),
            )
        )
    return load_artifact(layout.version(ref.name, version))


def _resolve_digest(layout: Layout, ref: DigestRef) -> Artifact:
    digests = read_digests(layout, ref.prefix)
    found = {digest: artifacts for digest in digests if (artifacts := by_digest(layout, digest))}
    text = f"sha256:{ref.prefix}"
    if not found:
        raise RefError(
            Problem(
                what="no artifact has a digest that begins so",
                got=text,
                fix="`nemotron-style artifacts list` shows what there is",
            )
        )
    if len(found) > 1:
        refs = ", ".join(f"{each[0].ref} ({digest[:19]})" for digest, each in found.items())
        raise RefError(
            Problem(
                what="more than one digest begins so",
                got=text,
                allowed=refs,
                fix="give more digits",
            )
        )
    (artifacts,) = found.values()
    return artifacts[0]


def _outputs(layout: Layout, ref: OutputRef) -> list[str]:
    runs = layout.index / "output"
    slots = [f"run:{ref.run_id}/{entry.name}" for entry in entries(runs / ref.run_id)]
    return slots or [f"run:{entry.name}/{ref.slot}" for entry in entries(runs)]


def _unknown(ref: str, known: list[str]) -> RefError:
    fix = suggest(ref, known) or "`nemotron-style artifacts list` shows what there is"
    return RefError(Problem(what="no such artifact", got=repr(ref), fix=fix))


def _age(artifact: Artifact) -> tuple[str, str, int]:
    return artifact.record.created, artifact.record.name, artifact.record.version
