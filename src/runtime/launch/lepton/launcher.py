"""Runs as batch jobs on DGX Cloud Lepton.

A dry run shows the very body that is posted, and needs no SDK: types of our own write it
(:mod:`~nemotron_style.runtime.launch.lepton.job`). Plan and code reach the pod through a volume
that it shares with this machine, or as an archive that is uploaded and fetched
(:mod:`~nemotron_style.runtime.launch.bundle`).

The run's own files say first how a job ended, where this machine sees them; Lepton is asked
second; and a network that is down never makes a job lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import (
    Problem,
    ProfileError,
    StepFailed,
    StepsError,
    StoreError,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.launch.base import (
    JobHandle,
    Request,
    attach,
    attempt_of,
    begin_attempt,
    handle_of,
)
from nemotron_style.runtime.launch.bundle import Bundle, locate, pack, upload
from nemotron_style.runtime.launch.lepton.check import check_workspace
from nemotron_style.runtime.launch.lepton.client import Absent, Workspace, WorkspaceError, connect
from nemotron_style.runtime.launch.lepton.job import build_body, name_job, write_body
from nemotron_style.runtime.launch.lepton.logs import SECONDS_BETWEEN_QUESTIONS, follow_workspace
from nemotron_style.runtime.launch.lepton.pod import write_pod_script
from nemotron_style.runtime.launch.lepton.state import conclude, read_files
from nemotron_style.runtime.launch.lepton.submit import post
from nemotron_style.runtime.launch.lepton.validate import check_command, check_plan
from nemotron_style.runtime.launch.log import Question, follow_file
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.snapshot import list_sources, write_snapshot
from nemotron_style.runtime.run.state import FAILED, FINAL, JobState

EXECUTOR = "lepton"
POST = ("POST", "/jobs", "@lepton.json")
SECONDS_BETWEEN_LOOKS = 0.25


@dataclass(frozen=True)
class LeptonRequest(Request):
    """A plan as the JSON of a Lepton job; ``body`` is what is posted, ``files`` hold its text."""

    body: Mapping[str, Any]
    bundle: Bundle | None = None

    @property
    def name(self) -> str:
        """The job's name in the workspace."""
        return str(self.body["metadata"]["name"])

    def show_command(self) -> str:
        shown = super().show_command()
        if self.bundle is None:
            return shown
        url = locate(self.bundle, self.plan.site["upload"])
        return f"$ PUT {url} ({self.bundle.count} files)\n{shown}"


@dataclass
class LeptonLauncher:
    """Posts jobs and asks for them. Tests put another workspace and other sources in."""

    connect: Callable[[], Workspace] = connect
    sources: Callable[..., Iterable[tuple[str, Path]]] = list_sources

    def compile(self, plan: Plan, *, attempt: int = 1) -> LeptonRequest:
        """Raises ``ProfileError`` with everything that Lepton would refuse."""
        raise_all(ProfileError, [*check_plan(plan)])
        files = {"plan.json": plan.to_json(), "launch.sh": write_pod_script(plan)}
        bundle = None if plan.is_seen else self._bundle(plan, files)
        body = build_body(plan, attempt, bundle)
        raise_all(ProfileError, [*check_command(body["spec"]["container"]["command"])])
        files["lepton.json"] = write_body(body)
        return LeptonRequest(plan, attempt, files, POST, body, bundle)

    def _bundle(self, plan: Plan, files: Mapping[str, str]) -> Bundle:
        """Plan, script and code, laid out as below the store that the pod uses."""
        folder = f"runs/{plan.run_id}"
        content = {f"{folder}/{name}": text.encode() for name, text in files.items()}
        if plan.snapshot:
            below = Path(plan.snapshot.path).relative_to(plan.store).as_posix()
            sources = self.sources(plan.entrypoint, plan.config_class)
            content |= {f"{below}/{name}": path.read_bytes() for name, path in sources}
        return pack(content)

    def check(self, plan: Plan) -> Iterator[Problem]:
        """SDK, login, and whether the workspace has what the profile names."""
        yield from check_workspace(plan, self.connect)

    def submit(self, request: Request, *, after: Sequence[JobHandle] = ()) -> JobHandle:
        """Deliver the code and post the job, or follow the attempt that lives.

        Raises ``UsageError`` for ``after`` (Lepton has no order of jobs), without the SDK, and
        when nobody is logged in; ``StepFailed`` when the job is not there afterwards.
        """
        assert isinstance(request, LeptonRequest)
        plan = request.plan
        if after:
            names = ", ".join(handle.run_dir.name for handle in after)
            what = f"needs {names} first, and Lepton cannot hold a job back until another has ended"
            fix = f"run it attached (-r {plan.profile}), or that step first"
            raise UsageError(Problem(where=plan.step, what=what, fix=fix))
        workspace = self.connect()
        attempt = begin_attempt(request)
        if attempt is None:
            return attach(plan)
        job = {"executor": EXECUTOR, "workspace": workspace.name}
        try:
            # Before there is a job: another workspace must not think that there is none.
            write_json(attempt.path / "job.json", job)
            self._deliver(request)
            post(workspace, request.body, begun=attempt.record["started"])
        except StepsError as error:
            attempt.abandon()  # should the job come up after all, its worker gives way
            attempt.close(FAILED, error=str(error))
            raise
        write_json(attempt.path / "job.json", job | {"id": request.name})
        return handle_of(attempt)

    def _deliver(self, request: LeptonRequest) -> None:
        plan = request.plan
        if request.bundle:
            upload(request.bundle, plan.site["upload"])
        elif plan.snapshot and plan.records:  # the same disk, under another name here
            below = Path(plan.snapshot.path).relative_to(plan.store)
            seen = plan.snapshot.model_copy(update={"path": str(Path(plan.records, below))})
            write_snapshot(seen, plan.entrypoint, plan.config_class)

    def state(self, handle: JobHandle) -> JobState:
        """From our files, where they are seen, then from Lepton. No answer changes nothing."""
        return self.states([handle])[0]

    def states(self, handles: Sequence[JobHandle]) -> list[JobState]:
        """The same of many; a workspace that does not answer is asked once."""
        silence: dict[str, StepsError | WorkspaceError] = {}
        states = []
        for handle in handles:
            attempt = attempt_of(handle)
            state, workspace = read_files(attempt), str(attempt.job.get("workspace", ""))
            try:
                if state is None and workspace not in silence:
                    state = self._ask(handle)
            except (WorkspaceError, UsageError, StoreError) as error:
                silence[workspace] = error
            if state is None:
                reason = f"the last that is known; {silence[workspace]}"
                state = JobState(attempt.recorded_state, reason=reason, stale=True)
            states.append(state)
        return states

    def _ask(self, handle: JobHandle) -> JobState:
        attempt, plan = attempt_of(handle), RunFolder(handle.run_dir).plan
        try:
            job = self._connect_for(attempt).find(name_job(plan, attempt.number))
        except Absent:
            job = None
        return conclude(attempt, job, plan=plan)

    def _connect_for(self, attempt: Attempt) -> Workspace:
        """The workspace to which an attempt's job was posted.

        Raises ``UsageError`` when the user is logged in to another one, whose jobs say nothing.
        """
        workspace = self.connect()
        posted = str(attempt.job.get("workspace", ""))
        if posted in ("", workspace.name):  # an older store does not say
            return workspace
        what = f"its job is in workspace {posted}, and you are logged in to {workspace.name}"
        fix = "log in to that workspace (`lep login`), and type the same command"
        raise UsageError(Problem(where=attempt.run_dir.name, what=what, fix=fix))

    def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
        """The attempt's own log where it is seen, else Lepton's, live and then stored."""
        attempt, plan = attempt_of(handle), RunFolder(handle.run_dir).plan

        def over() -> bool:
            return self.state(handle).is_final

        def written() -> bool:
            return read_files(attempt) is not None

        if plan.is_seen:
            ended = Question(over, seconds=SECONDS_BETWEEN_QUESTIONS, hint=written)
            path = attempt.log_of(node)
            yield from follow_file(path, over=ended, pause=SECONDS_BETWEEN_LOOKS)
            return
        job = (name_job(plan, attempt.number), node)
        since = float(attempt.record.get("started", 1))
        yield from follow_workspace(self._connect_for(attempt), job, since=since, over=over)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        """Stop the job, its worker saving first if it is quick; with ``force``, delete it.

        Raises ``StepFailed`` when the workspace cannot be told, ``UsageError`` when it is another.
        """
        attempt = attempt_of(handle)
        if attempt.record.get("state") in FINAL:
            return
        attempt.record_cancel()
        attempt.request_stop("cancelled")
        name = name_job(RunFolder(handle.run_dir).plan, attempt.number)
        workspace = self._connect_for(attempt)
        end = workspace.delete if force else workspace.stop
        try:
            end(name)
        except Absent:
            return
        except WorkspaceError as error:
            fix = "the wish is written down, and a worker that sees it stops; or try again"
            raise StepFailed(Problem(where=name, what=str(error), fix=fix)) from None
