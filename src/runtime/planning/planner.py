"""From what was asked for to everything that has to happen, upstream first.

``compile_pipeline`` is pure but for reading: it resolves the config of the step and of every step
that its inputs come from, plans each run, and decides what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.manifest import Manifest, Need, Slot
from nemotron_style.runtime.config.model import InputSource, ServiceSource
from nemotron_style.runtime.config.resolve import ResolvedConfig, resolve_config
from nemotron_style.runtime.errors import (
    ConfigError,
    Problem,
    StepsError,
    UsageError,
    raise_all,
    suggest,
)
from nemotron_style.runtime.planning.build import PlannedService, draft_plan
from nemotron_style.runtime.planning.inputs import (
    Adoption,
    Offer,
    choose_sources,
    explain_missing,
    offer_artifact,
    offer_ref,
    read_given,
)
from nemotron_style.runtime.planning.request import PlanContext, RunRequest, check_request
from nemotron_style.runtime.planning.reuse import Decision, decide
from nemotron_style.runtime.run.plan import Plan, get_key


@dataclass(frozen=True)
class PlannedRun:
    """A plan, what to do about it, and what is known of its inputs (by slot)."""

    plan: Plan
    decision: Decision
    offers: Mapping[str, Offer]


@dataclass(frozen=True)
class Pipeline:
    """Runs in the order in which they can be made; the last one is what was asked for."""

    runs: tuple[PlannedRun, ...]

    @property
    def target(self) -> PlannedRun:
        return self.runs[-1]

    @property
    def adoptions(self) -> tuple[Adoption, ...]:
        """Content to bring into the store first, for runs that will take place."""
        needed = [run for run in self.runs if run.decision.action != "reuse"]
        offers = [offer for run in needed for offer in run.offers.values()]
        return tuple(dict.fromkeys(offer.adoption for offer in offers if offer.adoption))


def compile_pipeline(request: RunRequest, *, context: PlanContext) -> Pipeline:
    """Plan a request and all that it needs.

    Raises ``UsageError`` (or a subclass) for a config, an input or a chain of steps that does
    not work out; nothing has been written then.
    """
    planner = _Planner(context)
    planner.plan(request)
    return Pipeline(tuple(planner.runs.values()))


@dataclass
class _Planner:
    context: PlanContext
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    chain: list[RunRequest] = field(default_factory=list)

    def plan(self, request: RunRequest) -> PlannedRun:
        """Plan one request after everything upstream of it; the same run is kept once."""
        if request in self.chain:
            circle = " -> ".join(str(each) for each in [*self.chain, request])
            what = "the steps' inputs go round in a circle"
            raise ConfigError(Problem(key="inputs", what=what, got=circle))
        self.chain.append(request)
        manifest = self.context.catalog.find(request.step)
        check_request(request, manifest)
        config = resolve_config(manifest, name=request.config, overrides=request.overrides)
        beside = list_service_slots(manifest, self.context.catalog)
        given = read_given(request.inputs, manifest, beside=beside)
        sources = choose_sources(manifest, config, given=given, overrides=request.overrides)
        offers = self.fill(manifest, sources)
        services = self.find_services(manifest, config, given)
        run = self.settle(request, manifest, config, offers, services=services)
        self.chain.pop()
        return self.runs.setdefault(run.plan.run_id, run)

    def find_services(
        self, manifest: Manifest, config: ResolvedConfig, given: Mapping[str, str]
    ) -> dict[str, PlannedService]:
        """The services that are started beside a step: those that the config has no address of."""
        found: dict[str, PlannedService] = {}
        problems: list[Problem] = []
        for need in manifest.needs:
            start = f"{need.name}."
            own = {
                slot.removeprefix(start): ref
                for slot, ref in given.items()
                if slot.startswith(start)
            }
            address = get_key(config.values, need.config_key) if need.config_key else None
            if address is None:
                source = config.services.get(need.name, ServiceSource())
                found[need.name] = self.accompany(need, source, own)
            elif own:
                what = f"{need.config_key}={address} names a service that is there already"
                key, fix = start + next(iter(own)), "give one of them"
                problems.append(Problem(where="-i", key=key, what=what, fix=fix))
        raise_all(UsageError, problems)
        return found

    def accompany(
        self, need: Need, source: ServiceSource, given: Mapping[str, str]
    ) -> PlannedService:
        """A service with everything upstream of it planned."""
        manifest = self.context.catalog.find(need.step)
        config = resolve_config(manifest, name=source.config, overrides=source.as_overrides())
        sources = choose_sources(manifest, config, given=given, overrides=())
        return PlannedService(manifest, config, self.fill(manifest, sources, need=need))

    def settle(
        self,
        request: RunRequest,
        manifest: Manifest,
        config: ResolvedConfig,
        offers: dict[str, Offer],
        *,
        services: Mapping[str, PlannedService] | None = None,
    ) -> PlannedRun:
        """Find the generation to use and decide about it."""
        store = self.context.store
        beside = services or {}
        draft = draft_plan(request, manifest, config, offers, services=beside, context=self.context)
        plan, decision = decide(draft, store=store, fresh=request.fresh)
        if not self.context.upstream and len(self.chain) > 1 and decision.action != "reuse":
            what = f"{self.chain[0].step} needs it, and --no-upstream forbids to run it"
            fix = f"run it first: nemotron-style steps run {request.step} -c {request.config}"
            raise UsageError(Problem(where=str(request), what=what, got=decision.reason, fix=fix))
        theirs = {
            f"{name}.{slot}": offer
            for name, service in beside.items()
            for slot, offer in service.offers.items()
        }
        return PlannedRun(plan, decision, {**offers, **theirs})

    def fill(
        self, manifest: Manifest, sources: Mapping[str, InputSource], *, need: Need | None = None
    ) -> dict[str, Offer]:
        """An offer for every slot that is filled, of a service where there is a ``need``.

        Raises with the problems of all slots.
        """
        offers: dict[str, Offer] = {}
        problems: list[Problem] = []
        for slot in manifest.consumes:
            try:
                offer = self.fill_slot(manifest, slot, sources.get(slot.name), need=need)
            except StepsError as error:
                place = f"{manifest.id}: {slot.name}"
                problems += [replace(one, where=one.where or place) for one in error.problems]
                continue
            if offer:
                offers[slot.name] = offer
        raise_all(UsageError, problems)
        return offers

    def fill_slot(
        self,
        manifest: Manifest,
        slot: Slot,
        source: InputSource | None,
        *,
        need: Need | None = None,
    ) -> Offer | None:
        """What fills one slot, made or converted as needed; None for an optional empty one."""
        if source is None and slot.required:
            makers = [step.id for step in self.context.catalog.producers(slot.kind)]
            raise UsageError(explain_missing(slot, manifest, makers, need=need))
        if source is None:
            return None
        if source.ref is not None:
            offer = offer_ref(source.ref, slot, store=self.context.store)
        else:
            offer = self.make(source, slot, where=f"{manifest.id}: inputs.{slot.name}")
        kinds = self.context.catalog.kinds
        if kinds.accepts(slot.kind, offer.kind):
            return offer
        return self.convert(offer, slot, where=manifest.id)

    def make(self, source: InputSource, slot: Slot, *, where: str) -> Offer:
        """The output of an upstream step."""
        assert source.step is not None
        request = RunRequest(source.step, source.config, overrides=source.as_overrides())
        maker = self.context.catalog.find(source.step)
        produced = choose_output(
            maker, slot, source.slot, where=where, catalog=self.context.catalog
        )
        return self.offer_output(self.plan(request), produced)

    def convert(self, offer: Offer, slot: Slot, *, where: str) -> Offer:
        """The same content in the kind that is wanted, by the step that ``kinds.toml`` names."""
        catalog = self.context.catalog
        what = f"wants {slot.kind}, and {offer.ref or offer.source} is {offer.kind}"
        step = catalog.kinds.conversion(offer.kind, slot.kind)
        if step is None or step not in catalog.steps:
            fix = f"the step {step!r} would convert it and is not there" if step else ""
            raise UsageError(Problem(where=where, key=slot.name, what=what, fix=fix))
        manifest = catalog.find(step)
        takes = [one for one in manifest.consumes if catalog.kinds.accepts(one.kind, offer.kind)]
        if not takes:
            fix = f"{step} is named as its conversion and does not take it"
            raise UsageError(Problem(where=where, key=slot.name, what=what, fix=fix))
        config = resolve_config(manifest)
        others = {name: one for name, one in config.sources.items() if name != takes[0].name}
        offers = {takes[0].name: offer, **self.fill_others(manifest, takes[0], others)}
        request = RunRequest(step)
        self.chain.append(request)
        run = self.settle(request, manifest, config, offers)
        self.chain.pop()
        run = self.runs.setdefault(run.plan.run_id, run)
        return self.offer_output(
            run, choose_output(manifest, slot, None, where=where, catalog=catalog)
        )

    def fill_others(
        self, manifest: Manifest, taken: Slot, sources: Mapping[str, InputSource]
    ) -> dict[str, Offer]:
        """The other inputs of a conversion, from its own default config."""
        rest = tuple(slot for slot in manifest.consumes if slot.name != taken.name)
        return self.fill(manifest.model_copy(update={"consumes": rest}), sources)

    def offer_output(self, run: PlannedRun, slot: Slot) -> Offer:
        """What a planned run makes or has made in one of its slots."""
        made = None
        if run.decision.action == "reuse":
            made = self.context.store.output_of(run.plan.run_id, slot.name)
        if made:
            return offer_artifact(made)
        return Offer(slot.kind, f"run:{run.plan.run_id}/{slot.name}")


def list_service_slots(manifest: Manifest, catalog: Catalog) -> list[str]:
    """The inputs of the services that a step needs, as ``-i`` calls them: ``<name>.<slot>``."""
    needs = [(need, catalog.find(need.step)) for need in manifest.needs]
    return [f"{need.name}.{slot.name}" for need, step in needs for slot in step.consumes]


def choose_output(
    maker: Manifest, slot: Slot, name: str | None, *, where: str, catalog: Catalog
) -> Slot:
    """Which product of ``maker`` is meant for ``slot``: the named one, or the only fitting one."""
    if name is not None:
        found = maker.produced(name)
        if found is None:
            names = [one.name for one in maker.produces]
            what = f"{maker.id} has no output {name!r}"
            near = suggest(name, names)
            raise ConfigError(Problem(where=where, what=what, allowed=", ".join(names), fix=near))
        return found
    kinds = catalog.kinds
    fits = [one for one in maker.produces if kinds.accepts(slot.kind, one.kind)]
    fits = fits or [one for one in maker.produces if kinds.conversion(one.kind, slot.kind)]
    if len(fits) == 1:
        return fits[0]
    allowed = ", ".join(f"{one.name} ({one.kind})" for one in maker.produces)
    how_many = "more than one output" if fits else "no output"
    what = f"{maker.id} makes {how_many} that fits {slot.kind}"
    raise ConfigError(Problem(where=where, what=what, allowed=allowed, fix="name it with slot:"))
