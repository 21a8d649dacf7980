"""From a request to every run that it takes, upstream first.

``compile_pipeline`` only reads: it resolves the config of the step and of every step that its
inputs come from, plans each run, and decides what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nemotron_style.runtime.catalog.content_kind import suggest_makers
from nemotron_style.runtime.catalog.manifest import Manifest, Need
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest
from nemotron_style.runtime.catalog.slot import Slot
from nemotron_style.runtime.config.model import InputSource, ServiceSource
from nemotron_style.runtime.config.resolve import ResolvedConfig, resolve_config
from nemotron_style.runtime.errors import (
    ConfigError,
    Problem,
    StepsError,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.planning.build import ResolvedStep, draft_plan
from nemotron_style.runtime.planning.inputs import (
    MISSING,
    ResolvedInput,
    choose_output,
    choose_sources,
    describe_artifact,
    parse_input_options,
    resolve_ref,
)
from nemotron_style.runtime.planning.pipeline import Pipeline, PlannedRun
from nemotron_style.runtime.planning.preflight import check_shape
from nemotron_style.runtime.planning.request import PlanContext, RunRequest, check_request
from nemotron_style.runtime.planning.reuse import Decision, check_names, decide
from nemotron_style.runtime.run.plan import MADE_BY_RUN
from nemotron_style.runtime.run.token_contract import check_tokens
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.validation import get_key


def compile_pipeline(request: RunRequest, *, context: PlanContext) -> Pipeline:
    """Plan a request and everything upstream of it. Writes nothing.

    Raises ``UsageError`` (or a subclass) for a config, an input or a chain of steps that cannot
    be used. What is wrong with jobs is among the problems of a pipeline that is only shown.
    """
    planner = _Planner(context)
    planner.plan(request)
    problems = tuple(dict.fromkeys([*planner.problems, *planner.job_problems]))
    if planner.problems or not context.provisional:
        raise_all(UsageError, problems)
    return Pipeline(tuple(planner.runs.values()), problems)


@dataclass
class _Planner:
    """``runs`` are planned so far, by run id; ``chain`` are the requests being planned now.

    Steps share what is upstream of them, so ``planned`` and ``converted`` (by step and content)
    keep what was planned: the same order again is the same run. ``contents`` are refs and paths
    that were looked up, by the kind they are wanted in: a path is hashed once. ``problems`` are
    those of all slots, ``job_problems`` those of jobs whose slots are filled; planning goes on, so
    that all are found.
    """

    context: PlanContext
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    planned: dict[RunRequest, PlannedRun] = field(default_factory=dict)
    converted: dict[tuple[str, str], PlannedRun] = field(default_factory=dict)
    contents: dict[tuple[str, str], ResolvedInput] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    job_problems: list[Problem] = field(default_factory=list)
    chain: list[RunRequest] = field(default_factory=list)

    def plan(self, request: RunRequest) -> PlannedRun:
        """Plan one request after everything upstream of it, once however many steps need it."""
        if request in self.planned:
            return self.planned[request]
        if request in self.chain:
            circle = " -> ".join(str(each) for each in [*self.chain, request])
            what = "the inputs of these steps form a circle"
            raise ConfigError(Problem(key="inputs", what=what, got=circle))
        self.chain.append(request)
        try:
            run = self.planned[request] = self.plan_new(request)
        finally:
            self.chain.pop()
        return run

    def plan_new(self, request: RunRequest) -> PlannedRun:
        """Plan a request that was not planned before."""
        catalog = self.context.catalog
        step = catalog.find(request.step)
        given = {word.partition("=")[0] for word in request.inputs}
        config = resolve_config(
            step, name=request.config, overrides=request.overrides, filled=given
        )
        manifest = config.manifest
        check_request(request, manifest)
        service_slots = [
            f"{need.name}.{slot.name}"
            for need in manifest.needs
            for slot in catalog.find(need.step).consumes
        ]
        refs = parse_input_options(request.inputs, manifest, service_slots=service_slots)
        sources = choose_sources(manifest, config, refs=refs, overrides=request.overrides)
        if isinstance(manifest, TreeManifest) and sources.keys() - given:
            # Its config names content that is here; other keys may be derived from that one.
            config = resolve_config(
                step, name=request.config, overrides=request.overrides, filled=sources
            )
        resolved = ResolvedStep(manifest, config, self.resolve_inputs(manifest, sources))
        services = self.resolve_services(manifest, config, refs)
        return self.add_run(request, resolved, services, is_upstream=len(self.chain) > 1)

    def add_run(
        self,
        request: RunRequest,
        step: ResolvedStep,
        services: Mapping[str, ResolvedStep],
        *,
        is_upstream: bool,
    ) -> PlannedRun:
        """Find the generation to use and decide about it."""
        draft = draft_plan(request, step, services=services, context=self.context)
        plan, decision = decide(draft.seal, store=self.context.store, fresh=request.fresh)
        if request.name is not None:
            check_names(plan, decision, self.context.store)
        if is_upstream and not self.context.upstream and decision.action != "reuse":
            what = f"{self.chain[0].step} needs it, and --no-upstream forbids running it"
            fix = f"run it first: nemotron-style steps run {request.step} -c {request.config}"
            raise UsageError(Problem(where=str(request), what=what, got=decision.reason, fix=fix))
        service_inputs = {
            f"{name}.{slot}": one
            for name, service in services.items()
            for slot, one in service.inputs.items()
        }
        inputs = {**step.inputs, **service_inputs}
        pending = self.find_pending(inputs.values())
        if pending:
            decision = Decision("run", f"{pending}; its content decides which run this is")
        if decision.action in ("run", "resume"):
            tokens = check_tokens(plan, lambda slot: self.find_artifact(inputs.get(slot)))
            problems = [*draft.problems, *check_shape(plan), *tokens]
            self.job_problems += [replace(one, where=one.where or plan.step) for one in problems]
        run = PlannedRun(step.manifest, plan, decision, inputs, pending)
        return self.runs.setdefault(plan.run_id, run)

    def find_artifact(self, one: ResolvedInput | None) -> Artifact | None:
        """What fills a slot, where that is an artifact already."""
        return self.context.store.find(one.ref) if one and one.ref else None

    def find_pending(self, inputs: Iterable[ResolvedInput]) -> str:
        """What the first input waits for, or what that is made from; empty for none."""
        for one in inputs:
            made_by = self.runs.get(one.source.removeprefix(MADE_BY_RUN).partition("/")[0])
            if pending := one.pending or (made_by.pending if made_by else ""):
                return pending
        return ""

    def resolve_services(
        self, manifest: Manifest, config: ResolvedConfig, refs: Mapping[str, str]
    ) -> dict[str, ResolvedStep]:
        """The services to start beside a step: those whose address the config does not give."""
        services: dict[str, ResolvedStep] = {}
        problems: list[Problem] = []
        for need in manifest.needs:
            prefix = f"{need.name}."
            own_refs = {
                slot.removeprefix(prefix): ref
                for slot, ref in refs.items()
                if slot.startswith(prefix)
            }
            address = get_key(config.values, need.config_key) if need.config_key else None
            if address is None:
                started = config.services.get(need.name, ServiceSource())
                service = self.context.catalog.find(need.step)
                own = resolve_config(service, name=started.config, overrides=started.as_overrides())
                sources = choose_sources(service, own, refs=own_refs)
                inputs = self.resolve_inputs(service, sources, need=need)
                services[need.name] = ResolvedStep(service, own, inputs)
            elif own_refs:
                what = f"{need.config_key}={address} names a service that is there already"
                key, fix = prefix + next(iter(own_refs)), "give one of them"
                problems.append(Problem(where="-i", key=key, what=what, fix=fix))
        raise_all(UsageError, problems)
        return services

    def resolve_inputs(
        self,
        manifest: Manifest,
        sources: Mapping[str, InputSource],
        *,
        known: Mapping[str, ResolvedInput] | None = None,
        need: Need | None = None,
    ) -> dict[str, ResolvedInput]:
        """What fills the slots of a step, or of the service of a ``need``; ``known`` slots stay.

        What is wrong with a slot is kept among the problems, and the slot counts as missing.
        """
        inputs = dict(known or {})
        for slot in manifest.consumes:
            if slot.name in inputs:
                continue
            try:
                resolved = self.resolve_slot(manifest, slot, sources.get(slot.name), need)
            except StepsError as error:
                where = f"{manifest.id}: {slot.name}"
                self.problems += [replace(one, where=one.where or where) for one in error.problems]
                resolved = ResolvedInput(slot.kind, MISSING + slot.name, pending="refused")
            if resolved:
                inputs[slot.name] = resolved
        return inputs

    def resolve_slot(
        self, manifest: Manifest, slot: Slot, source: InputSource | None, need: Need | None
    ) -> ResolvedInput | None:
        """What fills one slot, made or converted as needed; None for an empty optional one."""
        catalog = self.context.catalog
        if source is None and slot.required:
            fix = f"give -i {need.name}.{slot.name}=REF" if need else f"give -i {slot.name}=REF"
            if need and need.config_key:
                fix += f", or {need.config_key} of a service that is there already"
            elif slot.config_key and not need:
                fix += f" or {slot.config_key}=PATH"
            makers = ", ".join(step.id for step in catalog.producers(slot.kind))
            fix += f"; made by: {makers}" if makers else ""
            if self.context.provisional:
                remark, pending = f"MISSING, nothing fills it; {fix}", f"{slot.name} is missing"
                return ResolvedInput(slot.kind, MISSING + slot.name, remark=remark, pending=pending)
            what = f"the input ({slot.kind}) is required and nothing fills it"
            raise UsageError(Problem(where=manifest.id, key=slot.name, what=what, fix=fix))
        if source is None:
            return None
        if source.ref is not None:
            resolved = self.look_up(source.ref, slot)
        else:
            resolved = self.make(source, slot, where=f"{manifest.id}: inputs.{slot.name}")
        if catalog.takes(slot, resolved.kind):
            return resolved
        return self.convert(resolved, slot, where=manifest.id)

    def look_up(self, ref: str, slot: Slot) -> ResolvedInput:
        """The content that a ref, path or URI names."""
        key = (ref, slot.kind)
        if key not in self.contents:
            self.contents[key] = resolve_ref(ref, slot, context=self.context)
        return self.contents[key]

    def make(self, source: InputSource, slot: Slot, *, where: str) -> ResolvedInput:
        """The output of an upstream step."""
        assert source.step is not None
        request = RunRequest(source.step, source.config, overrides=source.as_overrides())
        catalog = self.context.catalog
        run = self.plan(request)
        output = choose_output(run.manifest, slot, source.slot, where=where, catalog=catalog)
        return self.describe_output(run, output)

    def convert(self, content: ResolvedInput, slot: Slot, *, where: str) -> ResolvedInput:
        """The same content in the kind of ``slot``, by the step that ``kinds.toml`` names."""
        catalog = self.context.catalog
        what = f"wants {slot.kind}, and {content.ref or content.source} is {content.kind}"
        step = catalog.kinds.conversion(content.kind, slot.kind)
        if step is None or step not in catalog.steps:
            fix = f"the step {step!r} would convert it and is not there" if step else ""
            fix = fix or suggest_makers(content.kind, slot, catalog)
            raise UsageError(Problem(where=where, key=slot.name, what=what, fix=fix))
        manifest = catalog.find(step)
        accepts, conversion = catalog.kinds.accepts, catalog.kinds.conversion
        taken = next((one for one in manifest.consumes if accepts(one.kind, content.kind)), None)
        if taken is None:  # what another conversion makes of it may be taken
            others = ((one, conversion(content.kind, one.kind)) for one in manifest.consumes)
            taken = next((one for one, other in others if other not in (None, step)), None)
            content = self.convert(content, taken, where=step) if taken else content
        if taken is None:
            fix = f"{step} is named as its conversion and does not take it"
            raise UsageError(Problem(where=where, key=slot.name, what=what, fix=fix))
        run = self.converted.get((step, content.source))
        if run is None:
            config = resolve_config(manifest)
            inputs = self.resolve_inputs(manifest, config.sources, known={taken.name: content})
            converter = ResolvedStep(manifest, config, inputs)
            run = self.add_run(RunRequest(step), converter, {}, is_upstream=True)
            self.converted[step, content.source] = run
        output = choose_output(manifest, slot, None, where=where, catalog=catalog)
        return replace(self.describe_output(run, output), made_from=content)

    def describe_output(self, run: PlannedRun, slot: Slot) -> ResolvedInput:
        """What a planned run makes, or has made, in one of its slots."""
        made = None
        if run.decision.action == "reuse":
            made = self.context.store.output_of(run.plan.run_id, slot.name)
        if made:
            return describe_artifact(made)
        return ResolvedInput(slot.kind, f"run:{run.plan.run_id}/{slot.name}")
