"""The dry run: everything that a submission would do, described and shown byte for byte.

The text holds no time and nothing random: the same request on the same store gives the same
text, and what it shows for a run is exactly what submitting that run writes and executes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.launch.base import Launcher, Request
from nemotron_style.runtime.planning.inputs import ResolvedInput
from nemotron_style.runtime.planning.pipeline import Pipeline, PlannedRun
from nemotron_style.runtime.run.folder import RunFolder


def compile_requests(
    pipeline: Pipeline, launcher: Launcher, *, reused: bool = False
) -> dict[str, Request]:
    """The requests to show, by run id: of the target and of what would be submitted.

    With ``reused``, of every run.
    """
    return {
        run.plan.run_id: launcher.compile(
            run.plan, attempt=RunFolder(run.plan.record_dir).next_attempt
        )
        for run in pipeline.runs
        if reused or run.decision.action != "reuse" or run is pipeline.target
    }


def render_pipeline(pipeline: Pipeline, requests: Mapping[str, Request]) -> str:
    """An overview of all runs, then each one that would be submitted in full."""
    parts = ["\n".join(_render_overview(pipeline))]
    for run in pipeline.runs:
        if run.decision.action != "reuse" or run is pipeline.target:
            parts.append("\n".join(_render_plan(run)))
            parts.append(requests[run.plan.run_id].render().rstrip())
    return "\n\n".join(parts) + "\n"


def describe_pipeline(pipeline: Pipeline, requests: Mapping[str, Request]) -> dict[str, Any]:
    """The same facts as plain data; ``requests`` are those of every run."""
    runs = []
    for run in pipeline.runs:
        request = requests[run.plan.run_id]
        files = {name: text for name, text in request.files.items() if name != "plan.json"}
        job = {"plan": request.plan.model_dump(mode="json"), "argv": list(request.argv)}
        runs.append({**describe_run(run), **job, "files": files})
    adoptions = [vars(adoption) for adoption in pipeline.adoptions]
    shown = {"dry_run": True, "adoptions": adoptions, "runs": runs}
    problems = [problem.as_dict() for problem in pipeline.problems]
    error = {"exit_code": UsageError.exit_code, "problems": problems}
    return shown | ({"error": error} if problems else {})


def describe_run(run: PlannedRun) -> dict[str, Any]:
    """A planned run, the decision about it, and its inputs, as plain data."""
    plan, decision = run.plan, run.decision
    inputs = {
        planned.slot: {
            "kind": planned.kind,
            "source": planned.source,
            **_describe_content(run.inputs[planned.slot]),
        }
        for planned in plan.inputs
    }
    return {
        "run_id": plan.run_id,
        "step": plan.step,
        "config": plan.config_name,
        "notes": list(plan.notes),
        "decision": decision.action,
        "provisional": bool(run.pending),
        "reason": decision.reason,
        "details": list(decision.details),
        "inputs": inputs,
    }


def _describe_content(resolved: ResolvedInput) -> dict[str, str]:
    location = resolved.adoption.location if resolved.adoption else ""
    known = {"ref": resolved.ref, "digest": resolved.digest, "adopted_from": location}
    known["remark"] = resolved.remark
    return {name: value for name, value in known.items() if value}


def _render_overview(pipeline: Pipeline) -> Iterator[str]:
    for run in pipeline.runs:
        plan, decision = run.plan, run.decision
        yield f"{decision.action:<7} {plan.step} ({plan.config_name}): {decision.reason}"
    for adoption in pipeline.adoptions:
        yield f"adopt   {adoption.location} as {adoption.name} ({adoption.kind})"


def _render_plan(run: PlannedRun) -> Iterator[str]:
    import yaml

    from nemotron_style.runtime.config.yaml_file import Dumper

    plan = run.plan
    yield f"== {plan.run_id}"
    if run.pending:
        yield "note      provisional: the content of its inputs may make it another run"
    yield f"step      {plan.step}"
    how = ", detached" if plan.detached else ""
    yield f"profile   {plan.profile} ({plan.executor}{how})"
    if plan.root:
        yield f"store     {plan.root}, with its runs in {plan.records or plan.store}"
    yield from (f"note      {note}" for note in plan.notes)
    for planned in plan.inputs:
        resolved = run.inputs[planned.slot]
        known = _describe_content(resolved)
        if resolved.pending and not resolved.adoption:
            yield f"input     {planned.slot}: {planned.kind}  {resolved.remark}"
            continue
        shown = "  ".join(value for value in known.values() if value != planned.source)
        line = f"input     {planned.slot}: {planned.kind}  {planned.source}  {shown}"
        yield line.rstrip()
    for name, service in plan.services.items():
        yield f"service   {name}: {service.step} ({service.config_name}), beside the step"
    for output in plan.outputs:
        yield f"output    {output.slot}: {output.kind}  {output.name}"
    if plan.secrets:
        yield f"secrets   {', '.join(plan.secrets)}"
    yield "config"
    text = yaml.dump(plan.config, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    yield from (f"  {line}" for line in text.splitlines())
    for name, content in plan.files.items():
        yield f"file      {name}"
        yield from (f"  {line}".rstrip() for line in content.splitlines())
