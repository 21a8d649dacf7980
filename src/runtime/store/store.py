"""The store of artifacts: find them by ref, commit new ones, check that they are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from nemotron_style.runtime import atomic
from nemotron_style.runtime.errors import ArtifactError, Problem
from nemotron_style.runtime.store import audit, removal, resolve
from nemotron_style.runtime.store.adoption import adopt, source
from nemotron_style.runtime.store.adoption.bring import How
from nemotron_style.runtime.store.cache import fetch, find_cached
from nemotron_style.runtime.store.commit import commit_tree, discard, draft_record, finish_commit
from nemotron_style.runtime.store.digest import digest_tree
from nemotron_style.runtime.store.gc import Collected, collect_garbage
from nemotron_style.runtime.store.index import read_times
from nemotron_style.runtime.store.layout import INDEX_FOLDERS, Layout, is_committed
from nemotron_style.runtime.store.record import (
    Artifact,
    Edge,
    Evidence,
    Producer,
    Record,
    load_artifact,
    render_record,
)
from nemotron_style.runtime.store.ref import check_word
from nemotron_style.runtime.store.roots import files
from nemotron_style.runtime.store.roots.location import open_root
from nemotron_style.runtime.store.roots.object_path import ObjectPath
from nemotron_style.runtime.store.roots.probe import check_bucket
from nemotron_style.runtime.store.roots.snapshot import take_snapshot
from nemotron_style.runtime.store.staged.evidence import reject_secret_values
from nemotron_style.runtime.store.staged.seal import seal_tree
from nemotron_style.runtime.store.staged.share import share_files
from nemotron_style.runtime.store.tombstone import Tombstone, find_tombstone, is_removed
from nemotron_style.runtime.store.verify import verify_files

if TYPE_CHECKING:  # only a worker has one, and reading the store should start quickly
    from nemotron_style.runtime.store.staged.ahead import HashAhead

__all__ = ["Collected", "Store", "digest_tree"]


class Store:
    """A directory, or a bucket, of artifacts. Reading never writes, and what is missing is empty.

    ``scratch`` is the local folder of a store in a bucket, where its runs are and what is staged.
    """

    def __init__(self, root: str | Path, *, scratch: str | Path | None = None) -> None:
        self.root, local = open_root(root, scratch)
        self.layout = Layout(self.root, local)

    @property
    def local(self) -> Path:
        """The folder of this machine that has the store's runs: of no bucket, the store itself."""
        return self.layout.local

    @property
    def url(self) -> str | None:
        """The URL of the bucket; None for a folder."""
        return None if files.on_disk(self.root) else str(self.root)

    # Finding

    def resolve(self, ref: str) -> Artifact:
        """The artifact that ``ref`` names.

        Of several artifacts with one digest, the one that was committed first.

        Raises RefError, with near matches, when it names none or more than one, and ArtifactError
        for a record that is not the one that was committed.
        """
        return resolve.resolve(self.layout, ref)

    def artifacts(self, name: str | None = None) -> Iterator[Artifact]:
        """Every artifact, by name, the newest version first; unreadable ones are left out."""
        yield from self.list_artifacts(name)[0]

    def list_artifacts(
        self, name: str | None = None, *, limit: int = 0
    ) -> tuple[list[Artifact], list[Problem], int]:
        """:meth:`artifacts`, why others cannot be read, and how many older ones are left out.

        With a ``limit`` no more are read than that: those that were committed last.
        """
        return resolve.list_artifacts(self.layout, name, limit=limit)

    def by_digest(self, digest: str) -> list[Artifact]:
        """Every artifact with exactly this content, the first committed first."""
        return resolve.by_digest(self.layout, digest)

    def find(self, ref: str) -> Artifact | None:
        """The artifact ``name:v3``, or None when there is none to be read."""
        return resolve.find(self.layout, ref)

    def output_of(self, run_id: str, slot: str) -> Artifact | None:
        """What a run committed from a slot; None when it did not, or not to the end."""
        return resolve.output_of(self.layout, run_id, slot)

    def tombstone(self, ref: str) -> Tombstone | None:
        """What stays of ``name:v3`` after it was removed; None when it was not."""
        return find_tombstone(self.layout, ref)

    def explain_missing(self, ref: str) -> str:
        """Why there is nothing of this ref (``run:<run id>/<slot>``, ``sha256:...``), in words."""
        return resolve.explain_missing(self.layout, ref)

    def fetch(self, artifact: Artifact) -> Path:
        """The local folder with the files of an artifact of this store. Never write there."""
        if files.on_disk(artifact.path):
            return artifact.path
        return fetch(artifact, self.layout.cache)

    def find_local(self, artifact: Artifact) -> Path | None:
        """The folder that :meth:`fetch` gives, where it need not be fetched first."""
        if files.on_disk(artifact.path):
            return artifact.path
        return find_cached(artifact.record, self.layout.cache)

    # Committing

    def stage(self, hint: str) -> Path:
        """A new, empty directory under the store that nobody else writes to."""
        staged = atomic.unique_path(self.layout.staging, check_word(hint, "hint"))
        atomic.make_dir(staged)
        return staged

    def commit(
        self,
        staged: Path,
        *,
        name: str,
        kind: str,
        producer: Producer | None = None,
        inputs: Sequence[Edge] = (),
        forbidden: Sequence[str] = (),
        ahead: HashAhead | None = None,
        **evidence: Unpack[Evidence],
    ) -> Artifact:
        """Make a staged directory an artifact; afterwards ``staged`` is gone.

        A second commit of the same run and slot returns the first artifact, as long as that is
        whole, whatever ``staged`` holds. ``forbidden`` are values of secrets that must not occur
        in the record; ``ahead`` has hashes of files that are as they were.

        Raises ArtifactError, and commits nothing, when ``staged`` is outside the store, holds no
        files, or links or devices, or the record cannot be written; RefError for a name that
        cannot be used.
        """
        self.layout.name(name)  # checked before anything is read or moved
        if producer and (known := self.finish_commit(producer.run_id, producer.slot)):
            discard(self.layout, staged)
            return known
        self._check_staged(staged)
        hashed = seal_tree(staged, self.layout.staging, ahead)
        draft = draft_record(hashed, name=name, kind=kind, **evidence)
        draft = draft.model_copy(update={"producer": producer, "inputs": tuple(inputs)})
        reject_secret_values(render_record(draft), forbidden, where=name)
        hashed, _shared = share_files(self.layout, staged, hashed)
        return commit_tree(self.layout, staged, draft, hashed)

    def finish_commit(self, run_id: str, slot: str) -> Artifact | None:
        """Like :meth:`output_of`, but a commit that a crash cut off is finished first."""
        return finish_commit(self.layout, self.layout.output(run_id, slot))

    def adopt(
        self, path_or_uri: str | Path, *, kind: str, name: str, **how: Unpack[How]
    ) -> Artifact:
        """Copy a file or directory, or what a URI points to, into the store.

        With ``reference`` it stays where it is, and the artifact has links to its files. With
        ``link`` a large file on the store's disk is not copied: it gets a second name, and is
        read-only from then on. ``ways`` then says how many bytes came in which way. Adopting
        the same content for the same name and kind again returns the first artifact. A URI is not
        read again while its file system names the same content (ETags and the like).

        Raises InputError when nothing is there, something that is not a plain file or a link that
        leads out of the folder, or when there is no room; RefError for a name that cannot be used.
        """
        return adopt.adopt(self.layout, str(path_or_uri), kind=kind, name=name, **how)

    def list_location(self, uri: str) -> list[str]:
        """The paths of what adopting a URI would copy, unread; those of folders end with a slash.

        Raises InputError as :meth:`adopt` does.
        """
        return source.list_uri(uri)

    def find_adopted(self, uri: str, *, kind: str, name: str) -> Artifact | None:
        """What was last adopted from a URI, without asking whether it changed since."""
        return resolve.find_adopted(self.layout, uri, kind, name)

    def _check_staged(self, staged: Path) -> None:
        plain = staged.is_dir() and not staged.is_symlink()
        if not plain or not staged.resolve().is_relative_to(self.layout.local):
            what, fix = "is not a directory in the store's root", "use Store.stage or Store.adopt"
            allowed = f"a directory under {self.layout.local}"
            raise ArtifactError(Problem(where=str(staged), what=what, allowed=allowed, fix=fix))

    # Checking

    def check_root(self) -> list[Problem]:
        """Why a bucket cannot have a store, or not be written; it is asked, and a probe goes."""
        return check_bucket(self.root) if isinstance(self.root, ObjectPath) else []

    def unwritable(self, names: Sequence[str], inputs: Sequence[Artifact] = ()) -> list[Path]:
        """Folders in which commits under these names, from these inputs, must write and cannot."""
        layout = self.layout
        folders = [layout.staging, layout.runs]
        if not files.on_disk(layout.root):
            return atomic.unwritable([*folders, layout.cache])
        folders += [layout.index / name for name in INDEX_FOLDERS]
        folders += [folder for name in names for folder in (layout.name(name), layout.claims(name))]
        folders += [layout.edges("down", each.digest, each.ref) for each in inputs]
        return atomic.unwritable(folders)

    def verify(self, artifact: Artifact, *, deep: bool) -> list[Problem]:
        """Everything in which the artifact differs from what was committed.

        Shallow, a file is hashed only when its size or time differs from when it was committed;
        deep, always.
        """
        return self.verify_path(artifact.path, deep=deep)

    def verify_path(self, directory: Path, *, deep: bool) -> list[Problem]:
        """:meth:`verify` for the directory of a version, whose record may not be readable."""
        try:
            record = load_artifact(directory).record
        except FileNotFoundError:
            return [Problem(where=str(directory), what="is gone")]
        except ArtifactError as error:
            return list(error.problems)
        times = None if deep else read_times(self.layout, record.ref)
        return verify_files(record, directory, times=times)

    def check_keys(self, directory: Path) -> list[Problem]:
        """What is wrong with a committed version's place and with its keys in the index."""
        return audit.check_directory(self.layout, directory)

    def verify_all(self, *, deep: bool) -> tuple[int, list[Problem]]:
        """How many artifacts there are, and everything in which the store is not what it was.

        Besides the files of every artifact these are the keys of the index: each that is missing,
        changed, or too many, and each decided artifact that is gone.
        """
        if snapshot := take_snapshot(self.root):
            looked = Store(snapshot, scratch=self.local).verify_all(deep=deep)
            if not looked[1]:
                return looked
            # Of a commit or a removal that was under way a part may have been listed: look again.
        if not audit.is_store(self.layout):
            what, fix = "there is no store here", "is it mounted? A first run or adoption makes one"
            return 0, [Problem(where=str(self.root), what=what, fix=fix)]
        index = audit.check_index(self.layout)
        problems: list[Problem] = []
        directories = [
            each
            for each in audit.directories_of(self.layout)
            if is_committed(each) and not is_removed(self.layout, f"{each.parent.name}:{each.name}")
        ]
        for directory in directories:
            # Keys are worth a word only where the content is whole.
            found = self.verify_path(directory, deep=deep)
            problems += found or self.check_keys(directory)
        problems += removal.unfinished_removals(self.layout)
        return len(directories), problems + index

    def collect_garbage(self, *, grace_s: float = 86400.0) -> Collected:
        """Finish and mend what was decided; remove leftovers older than ``grace_s`` seconds."""
        return collect_garbage(self.layout, grace_s=grace_s)

    # Removing

    def read_family(self) -> removal.Family:
        """What each artifact was made from, for :func:`removal.select`."""
        return removal.read_family(self.layout)

    def remove(
        self, going: Sequence[Record], *, find_in_use: Callable[[], removal.Reasons]
    ) -> removal.Removed:
        """Remove the artifacts of a Selection; their records stay, as tombstones.

        ``find_in_use`` tells, by ref, what runs under way need. Raises ArtifactError, and removes
        nothing, when one of them is not ours to remove.
        """
        return removal.remove(self.layout, going, find_in_use=find_in_use)

    def finish_removals(self, *, find_in_use: Callable[[], removal.Reasons]) -> removal.Removed:
        """Go on with removals that were cut off."""
        return removal.finish_removals(self.layout, find_in_use=find_in_use)
