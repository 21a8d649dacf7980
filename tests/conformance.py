"""Run the project's own functions on vectors that another implementation computed.

    python tests/conformance.py FILE...

A file is ``{"meta": {...}, "cases": [{"id", "kind", "inputs", "expected", "config"?}, ...]}``.
For every case of a kind that is registered here, the function registered for it is called with
the whole case and returns what it computed under the names used in ``expected``; each is compared
within the file's ``meta.tolerance`` (or ``tolerance_suggested``).  A case that expects
``{"error": ...}`` passes when the project refuses it with an error of its own.  A loss that also
has ``expected_v0_6_0`` is computed a second time as that version did; null means refused.  A case
with a field, an input or a key of its config that nothing here reads fails: its answer would say
nothing of it.
Prints one line for a case that fails, a count at the end, and exits 1 when anything failed, 2 when
a file cannot be read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nemotron_style.steps.blocks.loss import steerlm2
from nemotron_style.steps.blocks.model.prefix_packing import Group
from nemotron_style.steps.blocks.training.microbatch_plan import plan_microbatches

sys.path.insert(0, str(Path(__file__).parent))  # also where a test loads this file by its path
import conformance_grpo
import conformance_judge

Case = Mapping[str, Any]
Check = Callable[[Case], Mapping[str, Any]]

CHECKS: dict[str, Check] = {**conformance_grpo.CHECKS, **conformance_judge.CHECKS}
DEFAULT_TOLERANCE = 1e-6
FIELDS = {"id", "kind", "inputs", "config", "expected", "expected_v0_6_0", "tolerance", "note"}
OTHER_ANSWERS = {"expected_gym_1a4912e"}
"""What another version answers; it is for readers."""
WITHOUT_EFFECT = {
    # What a failed comparison is worth, which has no worth here, and waiting, which no case does.
    "compare": {
        *("default_ranking", "default_score"),
        *("genrm_parse_retry_sleep_s", "judge_request_timeout_s"),
    },
    "dynamic_sampling": {"use_dynamic_sampling"},
}
"""Keys that a kind of case has, and that change no answer of it here."""
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""Numbers that JSON has no word for, as some files write them."""


def check(kind: str) -> Callable[[Check], Check]:
    """Register a function for the cases of ``kind``."""

    def register(function: Check) -> Check:
        CHECKS[kind] = function
        return function

    return register


def cut(groups: int, responses: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Where passes of at most ``size`` responses stand in a table ``[groups, responses]``."""
    alike = [Group([0], [[0]] * responses)] * groups
    return [each.index for each in plan_microbatches(alike, max_responses=size, deal=False)]


@check("steerlm2")
def run_steerlm2(case: Case) -> Mapping[str, Any]:
    """The training recipe's two phases, cut as the case says, with the gradient by autograd."""
    inputs = case["inputs"]
    count, width = inputs["num_groups"], inputs["num_responses"]

    def grouped(name: str) -> torch.Tensor:
        values = torch.tensor(inputs[name], dtype=torch.float64)
        return values.view(count, width, *values.shape[1:])

    token_nll = grouped("token_nll").requires_grad_()
    mask, log_q = grouped("loss_mask"), grouped("log_q")
    target = steerlm2.target_weights(grouped("log_p_a"), grouped("log_p_y"), log_q)

    log_q_theta = torch.empty_like(log_q)
    with torch.no_grad():
        for part in cut(count, width, inputs["forward_micro_batch_size"]):
            log_q_theta[part] = steerlm2.response_logprob(-token_nll[part], mask[part])
    current = steerlm2.baseline(log_q_theta, log_q)
    coefficients = target - current
    scales = steerlm2.response_scales(coefficients, mask.sum(-1), groups=count)

    total = 0.0
    for part in cut(count, width, inputs["micro_batch_size"]):
        loss = steerlm2.group_loss(-token_nll[part], mask[part], scales[part])
        loss.backward()
        total += loss.item()
    assert token_nll.grad is not None
    return {
        "target_weights": target.flatten().tolist(),
        "baseline": current.flatten().tolist(),
        "coefficients": coefficients.flatten().tolist(),
        "distance": steerlm2.distance(target, current).mean().item(),
        "loss": total,
        "grad_token_nll": token_nll.grad.flatten(0, 1).tolist(),
    }


def differences(expected: Any, got: Any, *, tolerance: float, path: str = "") -> Iterator[str]:
    """Where ``got`` departs from ``expected``: numbers by tolerance, the rest by equality."""
    number = (int, float)
    if isinstance(got, float) and expected in NOT_FINITE:
        expected = float(expected)
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        for key in expected:
            inner = f"{path}.{key}" if path else str(key)
            if key in got:
                yield from differences(expected[key], got[key], tolerance=tolerance, path=inner)
            else:
                yield f"{inner}: missing"
    elif is_list(expected) and is_list(got):
        if len(expected) != len(got):
            yield f"{path}: expected {len(expected)} values, got {len(got)}"
        for index, (left, right) in enumerate(zip(expected, got, strict=False)):
            yield from differences(left, right, tolerance=tolerance, path=f"{path}[{index}]")
    elif isinstance(expected, bool) or isinstance(got, bool):
        if expected is not got:
            yield f"{path}: expected {expected!r}, got {got!r}"
    elif isinstance(expected, number) and isinstance(got, number):
        if not close(float(expected), float(got), tolerance=tolerance):
            yield f"{path}: expected {expected!r}, got {got!r}"
    elif expected != got:
        yield f"{path}: expected {expected!r}, got {got!r}"


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def close(expected: float, got: float, *, tolerance: float) -> bool:
    """Within ``tolerance``, relative above 1; equal infinities and two NaN count as equal."""
    if math.isnan(expected) or math.isnan(got):
        return math.isnan(expected) and math.isnan(got)
    if math.isinf(expected) or math.isinf(got):
        return expected == got
    return abs(expected - got) <= tolerance * max(1.0, abs(expected))


def failure(case: Case, *, tolerance: float, others: Sequence[Case] = ()) -> str | None:
    """What is wrong with the project's answer to ``case`` in one line, or None.

    ``others`` are the cases of the same file: some go on where another ended.
    """
    found = [f"{key}: unknown here" for key in sorted(set(case) - FIELDS - OTHER_ANSWERS)]
    whole = {**case, "others": others}
    found += wrong(whole, case["expected"], tolerance=tolerance)
    if case["kind"] == "loss" and "expected_v0_6_0" in case:
        expected = case["expected_v0_6_0"] or {"error": "not in that version"}
        old = wrong({**whole, "compat": "v0.6.0"}, expected, tolerance=tolerance)
        found += [f"v0.6.0: {each}" for each in old]
    if not found:
        return None
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return found[0] + more


class ReadFields(Mapping[str, Any]):
    """The inputs or the config of a case, with the names of those that were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values, self.read = values, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def wrong(case: Case, expected: Any, *, tolerance: float) -> Iterator[str]:
    """Where the answer departs from ``expected``; an error that is not expected is one place."""
    refusal = isinstance(expected, Mapping) and "error" in expected
    fields = {part: ReadFields(case[part]) for part in ("inputs", "config") if part in case}
    try:
        got = CHECKS[case["kind"]]({**case, **fields})
        yield from differences(expected, got, tolerance=tolerance)
    except ValueError as error:
        if not refusal:
            yield f"ValueError: {error}"
            return
    except Exception as error:  # the report must cover the cases that follow
        yield f"{type(error).__name__}: {error}"
        return
    for part, values in fields.items():
        unread = set(values) - values.read - WITHOUT_EFFECT.get(case["kind"], set())
        for key in sorted(without_part(case, part) if refusal else unread):
            yield f"{part}.{key}: unknown here, so the answer says nothing of it"


def without_part(case: Case, part: str) -> Iterator[str]:
    """Fields that have no part in the refusal of ``case``: no other case of the kind has them, and
    without them it is refused all the same. (What is refused was not read to its end.)
    """
    others = [one for one in case["others"] if one["kind"] == case["kind"]]
    known = {key for one in others if one["id"] != case["id"] for key in one.get(part, ())}
    for key in set(case[part]) - known if others else ():
        rest = {name: value for name, value in case[part].items() if name != key}
        try:
            if "error" in CHECKS[case["kind"]]({**case, part: rest}):
                yield key
        except ValueError:
            yield key
        except KeyError:
            pass  # it is needed


def main(paths: Sequence[str]) -> int:
    """Check every file and return the exit code."""
    passed = failed = unknown = 0
    if not paths:
        print("usage: conformance.py FILE...", file=sys.stderr)
        return 2
    for path in paths:
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            meta, cases = document.get("meta", {}), document["cases"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"{path}: not a file of cases: {error}", file=sys.stderr)
            return 2
        usual = meta.get("tolerance", meta.get("tolerance_suggested", DEFAULT_TOLERANCE))
        for case in cases:
            if case.get("kind") not in CHECKS:
                unknown += 1
                continue
            told = failure(case, tolerance=case.get("tolerance", usual), others=cases)
            passed, failed = passed + (told is None), failed + (told is not None)
            if told is not None:
                print(f"FAILED {path}: {case['id']} ({case['kind']}): {told}")
    print(f"{passed} passed, {failed} failed, {unknown} unknown kind")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
