"""What a plan names and the workspace lacks. Reads only, and finds everything that is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from nemotron_style.runtime.errors import Problem, UsageError, suggest
from nemotron_style.runtime.launch.lepton.client import (
    NodeGroup,
    Refused,
    Workspace,
    WorkspaceError,
)
from nemotron_style.runtime.launch.lepton.validate import is_mounted
from nemotron_style.runtime.paths import find_project_root
from nemotron_style.runtime.run.folder import open_store
from nemotron_style.runtime.run.plan import Plan


def check_workspace(plan: Plan, connect: Callable[[], Workspace]) -> Iterator[Problem]:
    """SDK, login, node group, shape, volumes, secrets, reservation, inputs, work directory."""
    for problem in (*check_inputs(plan), *check_workdir(plan), *_ask_workspace(plan, connect)):
        yield replace(problem, where=problem.where or plan.where)


def _ask_workspace(plan: Plan, connect: Callable[[], Workspace]) -> Iterator[Problem]:
    try:
        workspace = connect()
        groups = workspace.node_groups()
    except UsageError as error:
        yield from error.problems
        return
    except WorkspaceError as error:  # the other questions would have no answer either
        yield Problem(what=f"Lepton was not reached: {error}")
        return
    yield from check_node_group(plan, groups)
    group = next((one for one in groups if one.id == plan.site.get("node_group")), None)
    for check in (check_shape, check_secrets, check_reservation):
        try:
            yield from check(plan, workspace, group)
        except Refused:
            continue  # not every user may ask for everything; the post will show
        except WorkspaceError as error:
            yield Problem(what=f"Lepton was not reached: {error}")
    yield from check_volumes(plan, group)


def check_node_group(plan: Plan, groups: list[NodeGroup]) -> Iterator[Problem]:
    """The profile must give the id, since that is what is posted; a name is answered with it."""
    wanted = plan.site.get("node_group")
    if not wanted or wanted in {group.id for group in groups}:
        return
    called = [group.id for group in groups if group.name == wanted]
    if called:
        fix = f"write node_group = {' or '.join(map(repr, called))}".replace("'", '"')
        what = "is the name of a node group, and its id is needed"
    else:
        what = "the workspace has no such node group"
        fix = suggest(wanted, [word for group in groups for word in (group.id, group.name)])
    allowed = ", ".join(f"{group.id} ({group.name})" for group in groups)
    yield Problem(key="node_group", what=what, got=repr(wanted), allowed=allowed, fix=fix)


def check_shape(plan: Plan, workspace: Workspace, group: NodeGroup | None) -> Iterator[Problem]:
    known = workspace.shapes(group.id if group else None)
    wanted = plan.site["resource_shape"]
    if known and wanted not in known:
        what, allowed = "the workspace has no such shape", ", ".join(sorted(known))
        fix = suggest(wanted, known)
        yield Problem(key="resource_shape", what=what, got=repr(wanted), allowed=allowed, fix=fix)


def check_secrets(plan: Plan, workspace: Workspace, group: NodeGroup | None) -> Iterator[Problem]:
    """The workspace keeps the values; the profile names them."""
    if not plan.secrets:
        return
    known = workspace.secrets()
    for name in plan.secrets:
        if name not in known:
            what = f"the workspace has no secret {name!r}"
            fix = suggest(name, known) or "`lep secret create` makes one"
            yield Problem(key="secrets", what=what, fix=fix)


def check_reservation(
    plan: Plan, workspace: Workspace, group: NodeGroup | None
) -> Iterator[Problem]:
    wanted = plan.site.get("node_reservation")
    if not wanted or group is None:
        return
    known = workspace.reservations(group.id)
    if wanted not in known:
        what = f"node group {group.id} has no such reservation"
        allowed = ", ".join(sorted(known))
        yield Problem(key="node_reservation", what=what, got=repr(wanted), allowed=allowed)


def check_volumes(plan: Plan, group: NodeGroup | None) -> Iterator[Problem]:
    """Where the node group tells its volumes, mounts must be of them."""
    if group is None or group.volumes is None:
        return
    for number, mount in enumerate(plan.mounts):
        volume = mount.volume or ""
        named = volume.startswith("node-") and volume != "node-local"
        if named and volume not in group.volumes:
            what = f"node group {group.id} has no such volume"
            allowed = ", ".join(sorted(group.volumes)) or "none"
            yield Problem(
                key=f"mounts[{number}].from", what=what, got=repr(volume), allowed=allowed
            )


def check_inputs(plan: Plan) -> Iterator[Problem]:
    """A detached job starts at once, so what it needs must be there: Lepton orders no jobs."""
    if not plan.detached or (plan.records and not plan.root):
        return
    store = open_store(plan)
    for planned in plan.inputs:
        if planned.producer and store.output_of(*planned.producer) is None:
            what = f"{planned.source} is not made yet, and Lepton cannot hold a job back for it"
            fix = f"run it attached (-r {plan.profile}), or that step first"
            yield Problem(where=plan.step, key=planned.slot, what=what, fix=fix)


def check_workdir(plan: Plan) -> Iterator[Problem]:
    """The project's root is taken when the profile names none, and a pod does not have it."""
    here = find_project_root(Path.cwd())
    if Path(plan.workdir) == here and not is_mounted(plan.workdir, plan):
        what, fix = "the pod does not have this folder", 'for instance workdir = "/tmp"'
        yield Problem(key="workdir", what=what, got=repr(plan.workdir), fix=fix)
