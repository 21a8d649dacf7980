"""A Lepton workspace: everything that touches the SDK, and its answers in small types of our own.

The SDK is imported at the first call. It is an extra, and needs an environment of its own (it pins
old releases of common packages). No message from here holds the token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nemotron_style.runtime.errors import Problem, UsageError

SECONDS_PER_CALL = 60
LINES_PER_CALL = 5000
LONGEST_EXCERPT = 300


class WorkspaceError(Exception):
    """The workspace did not do what was asked; the text says why."""


class Unreachable(WorkspaceError):
    """Nothing was sent: nobody answers at the address."""


class Refused(WorkspaceError):
    """The answer was a clear no; nothing happened."""


class Absent(Refused):
    """The workspace has no such thing."""


class Taken(Refused):
    """The workspace has one of this name already."""


class Unclear(WorkspaceError):
    """Whether it happened is not known: a server error, a senseless answer, or none."""


@dataclass(frozen=True)
class RemoteJob:
    """A job as the workspace describes it; ``created`` and ``ended`` in seconds since 1970.

    ``succeeded``, ``failed`` and ``wanted`` count its pods.
    """

    name: str
    state: str
    labels: Mapping[str, str] = field(default_factory=dict)
    created: float | None = None
    ended: float | None = None
    succeeded: int = 0
    failed: int = 0
    wanted: int = 1


@dataclass(frozen=True)
class NodeGroup:
    """``volumes`` as a mount names them: ``node-nfs:lustre``; None when they are not known."""

    id: str
    name: str
    volumes: frozenset[str] | None = None


def connect(*, seconds: float = SECONDS_PER_CALL) -> Workspace:
    """The workspace that the user is logged in to; nothing is asked of it yet.

    Raises ``UsageError`` when the SDK is not installed or nobody is logged in.
    """
    try:
        from leptonai.api.v2.client import APIClient
    except ImportError as error:
        what = f"profiles with executor = 'lepton' need the Lepton SDK ({error})"
        fix = "pip install 'nemotron-style[lepton]' in a virtual environment of its own"
        raise UsageError(Problem(what=what, fix=fix)) from None
    try:
        client: Any = APIClient()
    except Exception:  # its own text may show parts of the token
        client = None
    if client is None or not client.auth_token:
        fix = "`lep login`, or set LEPTON_WORKSPACE_ID and LEPTON_WORKSPACE_TOKEN"
        raise UsageError(Problem(what="not logged in to a Lepton workspace", fix=fix))
    client._timeout = seconds  # two minutes otherwise
    return Workspace(client)


@dataclass(frozen=True)
class Workspace:
    """What a launcher needs of a workspace; every method raises ``WorkspaceError``.

    ``client`` is the SDK's ``APIClient``.
    """

    client: Any

    @property
    def name(self) -> str:
        """The workspace's id, and the host at which it is."""
        return f"{self.client.workspace_id} at {urlsplit(self.client.url).hostname}"

    def create(self, body: Mapping[str, Any]) -> None:
        """Post exactly ``body``; what the SDK would change about it is refused, not sent."""
        from leptonai.api.v2.types.job import LeptonJob

        with self._explained("the job"):
            job = LeptonJob(**body)
            changed = describe_changes(body, self.client.job.safe_json(job))
            if changed:
                raise Refused(f"the SDK would post something else: {'; '.join(changed)}")
            self.client.job.create(job)

    def find(self, name: str) -> RemoteJob:
        with self._explained(f"job {name}"):
            job = self.client.job.get(name)
        return read_job(name, job)

    def replicas(self, name: str) -> list[str]:
        with self._explained(f"replicas of {name}"):
            replicas = self.client.job.get_replicas(name)
        return [replica.metadata.id_ or replica.id_ for replica in replicas]

    def follow(self, name: str, replica: str) -> Iterator[str]:
        """The log of a replica from its beginning, as it grows, until the connection ends."""
        with self._explained(f"log of {replica}"):
            yield from self.client.job.get_log(name, replica)

    def recall(self, name: str, replica: str | None, *, since: float, until: float) -> str:
        """The stored log between two times, in seconds since 1970."""
        start, end = (int(second * 1e9) for second in (since, until))  # nanoseconds
        lines: list[tuple[int, str]] = []
        while True:
            with self._explained(f"stored log of {name}"):
                answer = self.client.log.get_log(
                    name_or_job=name,
                    replica=replica,
                    start=start,
                    end=end,
                    limit=LINES_PER_CALL,
                    direction="forward",
                )
                streams = answer["data"]["result"]
                page = sorted((int(at), text) for each in streams for at, text in each["values"])
            lines += page
            if len(page) < LINES_PER_CALL or page[-1][0] < start:
                return "".join(f"{text.rstrip()}\n" for _, text in lines)
            start = page[-1][0] + 1

    def stop(self, name: str) -> None:
        with self._explained(f"job {name}"):
            self.client.job.update(name, spec={"spec": {"stopped": True}})

    def delete(self, name: str) -> None:
        with self._explained(f"job {name}"):
            self.client.job.delete(name)

    def node_groups(self) -> list[NodeGroup]:
        with self._explained("node groups"):
            return [read_node_group(group) for group in self.client.nodegroup.list_all()]

    def shapes(self, node_group: str | None) -> set[str]:
        with self._explained("resource shapes"):
            shapes = self.client.shapes.list_shapes(node_group=node_group, purpose="job")
        named = ((each.metadata.id_, each.metadata.name, each.spec.name) for each in shapes)
        return {name for names in named for name in names if name}

    def secrets(self) -> set[str]:
        with self._explained("secrets"):
            return {secret.name for secret in self.client.secret.list_all()}

    def reservations(self, node_group: str) -> set[str]:
        with self._explained(f"reservations of {node_group}"):
            listed = self.client.nodegroup.list_reservations(node_group)
        return {each.metadata.id_ for each in listed if each.metadata.id_}

    @contextmanager
    def _explained(self, subject: str) -> Iterator[None]:
        """Turn what the SDK raises into a ``WorkspaceError`` about ``subject``."""
        try:
            yield
        except WorkspaceError:
            raise
        except Exception as error:
            kind, text = explain(error, host=urlsplit(self.client.url).netloc.rpartition("@")[2])
            text = text.replace(self.client.auth_token, "***")
            raise kind(f"{subject}: {text}") from None


def explain(error: Exception, *, host: str) -> tuple[type[WorkspaceError], str]:
    """The kind of an error of the SDK, and words for it."""
    import requests
    from pydantic import ValidationError

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", getattr(error, "status_code", None))
    if status is not None:
        text = response.text if response is not None else ""
        kinds = {404: Absent, 408: Unclear, 409: Taken}
        kind = kinds.get(status, Refused if status < 500 else Unclear)
        return kind, f"HTTP {status} from {host}{excerpt(text)}"
    if isinstance(error, requests.ConnectionError) and never_sent(error):
        return Unreachable, f"nobody answers at {host}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return Unclear, f"{host} did not answer in time"
    if isinstance(error, requests.RequestException):
        return Unclear, f"the connection to {host} broke"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return Refused, f"{place}: {first['msg']}"
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError | UnicodeError):
        return Refused, str(error)
    return Unclear, f"{host} answered with something that makes no sense"


def never_sent(error: Exception) -> bool:
    """Whether the connection was not even made, so that nothing can have happened."""
    import requests
    from urllib3.exceptions import NewConnectionError, SSLError

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(
        reason, NewConnectionError | SSLError
    )


def excerpt(text: str) -> str:
    """The message of an answer in JSON, the words of one in HTML, cut to a readable length."""
    try:
        answer = json.loads(text)
        text = str(answer.get("message") or answer.get("error") or text)
    except (ValueError, AttributeError):
        text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.S | re.I)
    words = " ".join(text.split())[:LONGEST_EXCERPT]
    return f": {words}" if words else ""


def describe_changes(ours: Any, theirs: Any, *, key: str = "") -> list[str]:
    """Where two JSON documents differ, one line a key; types count (``1`` is not ``true``)."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        prefix = f"{key}." if key else ""
        return [
            line
            for name in sorted({*ours, *theirs})
            for line in describe_changes(ours.get(name), theirs.get(name), key=f"{prefix}{name}")
        ]
    before, after = (json.dumps(side, sort_keys=True, default=str) for side in (ours, theirs))
    return [] if before == after else [f"{key}: {before} -> {after}"]


def read_job(name: str, job: Any) -> RemoteJob:
    """A job of the SDK as a ``RemoteJob``."""
    status = job.status
    state = getattr(status, "state", None)
    return RemoteJob(
        name=name,
        state=state.value if state else "UNK",
        labels=job.metadata.labels or {},
        created=as_seconds(job.metadata.created_at),
        ended=as_seconds(getattr(status, "completion_time", None)),
        succeeded=getattr(status, "succeeded", None) or 0,
        failed=getattr(status, "failed", None) or 0,
        wanted=job.spec.completions or 1,
    )


def as_seconds(moment: int | None) -> float | None:
    """A time that may be given in seconds, milliseconds or nanoseconds since 1970."""
    if not moment:
        return None
    return moment / (1e9 if moment > 1e16 else 1e3 if moment > 1e11 else 1)


def read_node_group(group: Any) -> NodeGroup:
    """A node group of the SDK as a ``NodeGroup``."""
    listed = group.spec.volumes if group.spec else None
    volumes = None
    if listed is not None:
        volumes = frozenset(f"node-{volume.from_.value}:{volume.name}" for volume in listed)
    return NodeGroup(group.metadata.id_ or "", group.metadata.name or "", volumes)
