"""The dry run: everything that a submission would do, in words and byte for byte.

The text holds no time and nothing random: the same order on the same store gives the same text,
and what it shows for a run is exactly what submitting that run writes and executes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from nemotron_style.runtime.launch.base import Request
from nemotron_style.runtime.planning.inputs import Offer
from nemotron_style.runtime.planning.planner import Pipeline, PlannedRun
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan

PLAN = "plan.json"
Compile = Callable[..., Request]


def render_pipeline(pipeline: Pipeline, compile_plan: Compile) -> str:
    """An overview of all runs, then each one that would be submitted in full."""
    parts = ["\n".join(_overview(pipeline))]
    for run in pipeline.runs:
        if run.decision.action != "reuse" or run is pipeline.target:
            parts.append("\n".join(_headline(run)))
            parts.append(_compile(run.plan, compile_plan).render().rstrip())
    return "\n\n".join(parts) + "\n"


def describe_pipeline(pipeline: Pipeline, compile_plan: Compile) -> dict[str, Any]:
    """The same facts as plain data."""
    runs = [
        describe_planned(run) | _describe_job(_compile(run.plan, compile_plan))
        for run in pipeline.runs
    ]
    adoptions = [vars(adoption) for adoption in pipeline.adoptions]
    return {"dry_run": True, "adoptions": adoptions, "runs": runs}


def describe_planned(run: PlannedRun) -> dict[str, Any]:
    """A run, the decision about it, and its inputs."""
    plan, decision = run.plan, run.decision
    inputs = {
        planned.slot: {
            "kind": planned.kind,
            "source": planned.source,
            **_known(run.offers[planned.slot]),
        }
        for planned in plan.inputs
    }
    return {
        "run_id": plan.run_id,
        "step": plan.step,
        "config": plan.config_name,
        "notes": list(plan.notes),
        "decision": decision.action,
        "reason": decision.reason,
        "details": list(decision.details),
        "inputs": inputs,
    }


def _compile(plan: Plan, compile_plan: Compile) -> Request:
    return compile_plan(plan, attempt=RunFolder(plan.record_dir).next_attempt)


def _describe_job(request: Request) -> dict[str, Any]:
    told = {"plan": request.plan.model_dump(mode="json"), "argv": list(request.argv)}
    return told | {"files": {name: request.files[name] for name in request.files if name != PLAN}}


def _known(offer: Offer) -> dict[str, str]:
    known = {"ref": offer.ref, "digest": offer.digest}
    if offer.adoption:
        known["adopted_from"] = offer.adoption.location
    return {name: value for name, value in known.items() if value}


def _overview(pipeline: Pipeline) -> Iterator[str]:
    for run in pipeline.runs:
        plan, decision = run.plan, run.decision
        yield f"{decision.action:<7} {plan.step} ({plan.config_name}): {decision.reason}"
    for adoption in pipeline.adoptions:
        yield f"adopt   {adoption.location} as {adoption.name} ({adoption.kind})"


def _headline(run: PlannedRun) -> Iterator[str]:
    import yaml

    plan = run.plan
    yield f"== {plan.run_id}"
    yield f"step      {plan.step}"
    how = ", detached" if plan.detached else ""
    yield f"profile   {plan.profile} ({plan.executor}{how})"
    yield from (f"note      {note}" for note in plan.notes)
    for planned in plan.inputs:
        known = _known(run.offers[planned.slot])
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
    text = yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True)
    yield from (f"  {line}" for line in text.splitlines())
