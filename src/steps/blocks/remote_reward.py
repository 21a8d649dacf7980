"""Scores from a reward model that answers over HTTP; no torch, text only, never token ids.

No failure ever becomes a score. An answer counts when it came whole and in time, from the model
that was there at the beginning, with one finite score and the right attributes for each
conversation that was sent, under the id that it was sent with. Everything else is counted, waited
out and asked again, and after a bounded number of tries :class:`RewardUnavailable` stops the run.

Source: NeMo-Aligner's remote reward model, which waits 6.9 days for an answer, never asks twice
and begins with a sleep.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Self

from nemotron_style.runtime.errors import Interrupted, Problem, StepFailed
from nemotron_style.steps.blocks.address import Address, read_address
from nemotron_style.steps.blocks.exchange import Exchange, Fault, as_list
from nemotron_style.steps.blocks.scorer import Message, Scored, read_scored, shorten

LAST_FAULTS = 3
SECONDS_BETWEEN_LOOKS = 0.5


class RewardUnavailable(StepFailed):
    """The reward model gave no answer that can be used; says what was tried.

    ``hopeless`` when it refused in a way that asking again cannot change.
    """

    def __init__(self, problem: Problem, *, hopeless: bool = False) -> None:
        super().__init__(problem)
        self.hopeless = hopeless


class Stopped(Exception):
    """Another request has failed for good; this one is not worth going on with."""


@dataclass(frozen=True)
class Patience:
    """How often and how long it is asked.

    One try takes at most ``timeout`` seconds; between two lie ``first_pause`` seconds, then twice
    as long and so on up to ``longest_pause``, half of it by chance. A ``Retry-After`` stands
    before that, up to ``longest_pause`` too.
    """

    tries: int = 8
    timeout: float = 120.0
    first_pause: float = 0.5
    longest_pause: float = 30.0

    def pause(self, number: int, chance: float, asked: float | None) -> float:
        """Seconds after the ``number``-th failure (from 0); ``chance`` lies in [0, 1)."""
        pause = min(self.first_pause * 2.0 ** min(number, 60), self.longest_pause)
        pause *= 0.5 + 0.5 * chance
        return pause if asked is None else min(max(asked, pause), self.longest_pause)


@dataclass(frozen=True)
class Health:
    """A reward model that is ready: its digest, its outputs, how much it takes at once."""

    model: str
    outputs: tuple[str, ...]
    most: int | None = None


@dataclass
class RewardClient:
    """Asks a reward model. A context manager; :meth:`score` may be called from many threads.

    ``at_once`` requests of ``batch`` conversations are under way at a time. ``seed`` makes the
    pauses repeatable. ``stopping`` is asked between tries (a context's flag): when it turns true,
    ``Interrupted`` is raised. ``clock`` is that of :mod:`time`, ``sleep`` stands in for waiting.
    """

    address: Address | str
    token: str | None = field(default=None, repr=False)
    patience: Patience = Patience()
    batch: int = 32
    at_once: int = 4
    seed: int | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], None] | None = field(default=None, repr=False)
    stopping: Callable[[], bool] = field(default=lambda: False, repr=False)
    health: Health | None = None

    def __post_init__(self) -> None:
        if isinstance(self.address, str):
            self.address = read_address(self.address)
        self._exchange = Exchange(self.address, self.token)
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="reward")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of threads and connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._exchange.close()

    @property
    def counts(self) -> dict[str, int]:
        """For metrics: ``requests``, ``conversations``, ``retries``, ``failed_<kind>`` ..."""
        with self._lock:
            return dict(self._counts)

    def wait_ready(self, seconds: float) -> Health:
        """Ask for its health until it is ready.

        Raises ``RewardUnavailable`` after ``seconds``, or at once when the token is refused.
        """
        begun = self.clock()
        faults: list[Fault] = []
        while True:
            left = seconds - (self.clock() - begun)
            if left <= 0:
                raise self._give_up(faults, f"was not ready within {seconds:g} s")
            try:
                timeout = min(self.patience.timeout, max(left, 0.05))
                told = self._exchange.ask("GET", "/health", timeout=timeout)
                self.health = read_health(told, self.health)
                return self.health
            except Fault as fault:
                faults.append(fault)
                self._count(f"failed_{fault.kind}")
                if fault.kind in ("http_401", "http_403"):
                    raise self._give_up(faults, "refused the token", hopeless=True) from None
                pause = self.patience.pause(len(faults) - 1, self._chance(), fault.retry_after)
                left = seconds - (self.clock() - begun)
                self._pause(min(pause, max(left, 0.0)), threading.Event())

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[Scored]:
        """One ``Scored`` for each conversation, in their order.

        Raises ``RewardUnavailable`` when any of them got none, whatever the others got.
        """
        if not conversations:
            return []
        health = self.health or self.wait_ready(self.patience.timeout)
        size = min(self.batch, health.most or self.batch)
        parts = [conversations[at : at + size] for at in range(0, len(conversations), size)]
        stop = threading.Event()
        futures = [
            self._pool.submit(self._score_part, part, health, stop, first=number * size)
            for number, part in enumerate(parts)
        ]
        done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        if waiting:
            stop.set()
            for future in waiting:
                future.cancel()
            wait(waiting)
        errors = [future.exception() for future in done]
        for error in errors:
            if error is not None and not isinstance(error, Stopped):
                raise error
        return [scored for future in futures for scored in future.result()]

    def _score_part(
        self,
        part: Sequence[Sequence[Message]],
        health: Health,
        stop: threading.Event,
        *,
        first: int,
    ) -> list[Scored]:
        """Ask until there is a good answer, or no more tries."""
        texts = [[dict(message) for message in conversation] for conversation in part]
        faults: list[Fault] = []
        for number in range(self.patience.tries):
            try:
                scores = self._try(texts, health)
            except Fault as fault:
                faults.append(fault)
                self._count(f"failed_{fault.kind}")
                if fault.hopeless:
                    told = f"refused conversations {first} to {first + len(part) - 1}"
                    raise self._give_up(faults, told, hopeless=True) from None
                if number + 1 < self.patience.tries:
                    self._count("retries")
                    pause = self.patience.pause(number, self._chance(), fault.retry_after)
                    self._pause(pause, stop)
            else:
                self._count("conversations", len(scores))
                return scores
        raise self._give_up(faults, "gave no usable answer")

    def _try(self, texts: Sequence[Any], health: Health) -> list[Scored]:
        self._count("requests")
        name = uuid.uuid4().hex
        ids = [f"{name}-{index}" for index in range(len(texts))]
        body = {"conversations": texts, "ids": ids}
        told = self._exchange.ask("POST", "/v1/score", body, timeout=self.patience.timeout)
        return list(read_results(told, ids, health))

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        """Wait. Raises ``Stopped`` or ``Interrupted`` as soon as there is no use in it."""
        end = self.clock() + seconds
        while True:
            if stop.is_set():
                raise Stopped
            if self.stopping():
                raise Interrupted("stopped while the reward model was waited for")
            left = end - self.clock()
            if self.sleep is not None:
                return self.sleep(seconds)
            if left <= 0:
                return None
            stop.wait(min(left, SECONDS_BETWEEN_LOOKS))

    def _chance(self) -> float:
        with self._lock:
            return self._random.random()

    def _count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def _give_up(
        self, faults: Sequence[Fault], what: str, *, hopeless: bool = False
    ) -> RewardUnavailable:
        """What was tried: how often, what came of it, and the last words."""
        self._count("given_up")
        kinds = Counter(fault.kind for fault in faults)
        tally = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common())
        times = "1 try" if len(faults) == 1 else f"{len(faults)} tries"
        tally = f" ({times}: {tally})" if faults else ""
        last = "; ".join(dict.fromkeys(fault.message for fault in faults[-LAST_FAULTS:]))
        fix = "see the service's log; the same command resumes the run"
        fix = "mend what it names: asking again would not help" if hopeless else fix
        told = Problem(
            where=f"reward model at {self.address}", what=f"{what}{tally}", got=last, fix=fix
        )
        return RewardUnavailable(told, hopeless=hopeless)


def read_health(told: Mapping[str, Any], before: Health | None) -> Health:
    """A service that is ready. Raises ``Fault`` for every other answer."""
    if told.get("status") != "ready":
        raise Fault("not_ready", f"status is {shorten(told.get('status'))}")
    model = told.get("model")
    if "model" not in told:  # ours keeps that from those who bring no token
        raise Fault("http_401", "it does not say its model without a token")
    if not isinstance(model, str) or not model:
        raise Fault("malformed", f"model is no name: {shorten(model)}")
    outputs = as_list(told, "outputs")
    if not outputs or not all(isinstance(name, str) for name in outputs):
        raise Fault("malformed", f"outputs are no names: {shorten(outputs)}")
    most = told.get("max_conversations")
    most = most if type(most) is int and most > 0 else None
    found = Health(model, tuple(outputs), most)
    if before is not None and (before.model, before.outputs) != (model, found.outputs):
        raise Fault("other_model", f"it is {shorten(model)} and was {shorten(before.model)}")
    return found


def read_results(told: Mapping[str, Any], ids: Sequence[str], health: Health) -> Iterator[Scored]:
    """The scores of an answer, in the order of ``ids``. Raises ``Fault`` when it is not that."""
    if told.get("model") != health.model:
        what = f"it is {shorten(told.get('model'))} and was {shorten(health.model)}"
        raise Fault("other_model", what)
    results = as_list(told, "results")
    if len(results) != len(ids):
        raise Fault("wrong_length", f"{len(results)} results for {len(ids)} conversations")
    for index, (result, name) in enumerate(zip(results, ids, strict=True)):
        if not isinstance(result, dict):
            raise Fault("malformed", f"results[{index}] is no object: {shorten(result)}")
        if result.get("id") != name:
            what = f"results[{index}] answers {shorten(result.get('id'))}, not {name!r}"
            raise Fault("wrong_order", what)
        try:
            yield read_scored(result.get("score"), result.get("attributes"), health.outputs)
        except ValueError as error:
            raise Fault("not_a_score", f"results[{index}]: {error}") from None
