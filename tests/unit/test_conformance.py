"""The conformance runner: it finds what differs, counts what it knows, and exits accordingly."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
RUNNER = TESTS / "conformance.py"
VECTORS = TESTS / "golden" / "steerlm2.json"
GRPO, JUDGE = TESTS / "golden" / "grpo.json", TESTS / "golden" / "genrm.json"

_spec = importlib.util.spec_from_file_location("conformance", RUNNER)
conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conformance)


@pytest.fixture
def document():
    return json.loads(VECTORS.read_text())


def write(path, document):
    path.write_text(json.dumps(document))
    return str(path)


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_own_vectors_pass_as_a_command():
    files = [VECTORS, GRPO, JUDGE]
    done = subprocess.run(
        [sys.executable, str(RUNNER), *map(str, files)], capture_output=True, text=True, check=False
    )
    count = sum(len(json.loads(file.read_text())["cases"]) for file in files)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{count} passed, 0 failed, 0 unknown kind\n"


@pytest.mark.parametrize("name", ["target_weights", "baseline", "distance", "loss"])
def test_a_wrong_number_fails_its_case(name, document, tmp_path, capsys):
    expected = document["cases"][0]["expected"]
    if isinstance(expected[name], list):
        expected[name][1] += 1e-6
    else:
        expected[name] += 1e-6
    assert conformance.main([write(tmp_path / "v.json", document)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("FAILED")
    assert document["cases"][0]["id"] in out[0]
    assert name in out[0]
    assert out[-1] == f"{len(document['cases']) - 1} passed, 1 failed, 0 unknown kind"


def test_a_wrong_gradient_fails_its_case(document, tmp_path, capsys):
    document["cases"][0]["expected"]["grad_token_nll"][3][1] += 1e-6
    assert conformance.main([write(tmp_path / "v.json", document)]) == 1
    assert "grad_token_nll[3][1]" in capsys.readouterr().out


def change(value):
    """Another value of the same shape, first of all that it holds."""
    if isinstance(value, dict):
        key = next(iter(value), "added")
        return {**value, key: change(value.get(key))}
    if isinstance(value, list):
        return [change(value[0]), *value[1:]] if value else ["added"]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "other"


@pytest.mark.parametrize("file", [GRPO, JUDGE], ids=lambda file: file.stem)
def test_every_expectation_of_every_kind_is_compared(file):
    """A case passes as it is, and with any one of the things that it expects changed it fails."""
    cases = json.loads(file.read_text())["cases"]
    for kind in {case["kind"] for case in cases}:
        wanted = [case for case in cases if case["kind"] == kind]
        case = next((one for one in wanted if "error" not in one["expected"]), wanted[0])
        assert conformance.failure(case, tolerance=2e-5, others=cases) is None
        for key, value in case["expected"].items():
            broken = {**case, "expected": {**case["expected"], key: change(value)}}
            if value != {}:
                assert conformance.failure(broken, tolerance=2e-5, others=cases), (kind, key)


def test_an_error_that_is_expected_must_happen_and_another_must_not():
    cases = {case["id"]: case for case in json.loads(GRPO.read_text())["cases"]}
    fine, refused = cases["loss_default_ppo_k3"], cases["loss_err_bad_kl_type"]
    assert conformance.failure(refused, tolerance=1e-5) is None
    assert conformance.failure({**refused, "expected": {"loss": 0.0}}, tolerance=1e-5)
    told = conformance.failure({**fine, "expected": {"error": "ValueError"}}, tolerance=1e-5)
    assert told == "error: missing"


def test_a_loss_is_also_checked_as_v0_6_0_computed_it():
    cases = {case["id"]: case for case in json.loads(GRPO.read_text())["cases"]}
    case = copy.deepcopy(cases["loss_rlhf_recipe"])
    case["expected_v0_6_0"]["loss"] += 1
    assert conformance.failure(case, tolerance=1e-5).startswith("v0.6.0: loss")
    case["expected_v0_6_0"] = None
    assert conformance.failure(case, tolerance=1e-5) == "v0.6.0: error: missing"


def test_the_files_tolerance_is_used(document, tmp_path, capsys):
    document["cases"][0]["expected"]["loss"] += 1e-6
    document["meta"]["tolerance"] = 1e-5
    assert conformance.main([write(tmp_path / "v.json", document)]) == 0
    del document["meta"]["tolerance"]
    document["meta"]["tolerance_suggested"] = 1e-7
    assert conformance.main([write(tmp_path / "v.json", document)]) == 1
    capsys.readouterr()


def test_unknown_kinds_are_counted_and_do_not_fail(document, tmp_path, capsys):
    document["cases"].append({"id": "x", "kind": "astrology", "inputs": {}, "expected": {}})
    count = len(document["cases"]) - 1
    assert conformance.main([write(tmp_path / "v.json", document)]) == 0
    assert last_line(capsys) == f"{count} passed, 0 failed, 1 unknown kind"


def test_files_are_counted_together(document, tmp_path, capsys):
    count = len(document["cases"])
    broken = copy.deepcopy(document)
    broken["cases"] = broken["cases"][:1]
    broken["cases"][0]["expected"]["baseline"].pop()
    paths = [write(tmp_path / "a.json", document), write(tmp_path / "b.json", broken)]
    assert conformance.main(paths) == 1
    assert last_line(capsys) == f"{count} passed, 1 failed, 0 unknown kind"


def test_a_case_that_cannot_be_computed_fails_alone(document, tmp_path, capsys):
    count = len(document["cases"])
    del document["cases"][0]["inputs"]["log_q"]
    assert conformance.main([write(tmp_path / "v.json", document)]) == 1
    out = capsys.readouterr().out
    assert "KeyError: 'log_q'" in out
    assert f"{count - 1} passed, 1 failed" in out


@pytest.mark.parametrize("text", ["{", "[]", '{"meta": {}}'])
def test_what_is_no_file_of_cases_is_told(text, tmp_path, capsys):
    path = tmp_path / "v.json"
    path.write_text(text)
    assert conformance.main([str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert conformance.main([str(tmp_path / "absent.json")]) == 2
    assert conformance.main([]) == 2


def found(expected, got, tolerance=1e-6):
    return list(conformance.differences(expected, got, tolerance=tolerance))


def test_comparison_of_values():
    assert found({"a": [1.0, None, "x", True]}, {"a": [1.0 + 1e-9, None, "x", True], "b": 0}) == []
    assert found({"a": 1}, {}) == ["a: missing"]
    assert found([1, 2], [1]) == [": expected 2 values, got 1"]
    assert found(True, 1) == [": expected True, got 1"]
    assert found("x", "y") == [": expected 'x', got 'y'"]
    assert found(None, 0.0) == [": expected None, got 0.0"]
    assert found(1e9, 1e9 + 100) == []
    assert found(float("nan"), float("nan")) == []
    assert found(float("nan"), 0.0) != []
    assert found(float("inf"), float("inf")) == []
    assert found(float("inf"), float("-inf")) != []
    assert found("-Infinity", float("-inf")) == found("NaN", float("nan")) == []
    assert found("Infinity", 1.0) != []
    assert found("Infinity", "Infinity") == []


@pytest.mark.parametrize("part", ["inputs", "config", None])
@pytest.mark.parametrize("file", [VECTORS, GRPO, JUDGE], ids=lambda file: file.stem)
def test_a_field_that_nothing_reads_fails_its_case(file, part):
    """An input, a key of the config, a field of the case: also where an error is expected."""
    cases = json.loads(file.read_text())["cases"]
    tolerance = 2e-5
    for case in (case for case in cases if part is None or part in case):
        fields = case if part is None else case[part]
        odd = {**fields, "importance_sampling_weights": [1.0]}
        changed = odd if part is None else {**case, part: odd}
        others = [changed if each is case else each for each in cases]
        assert conformance.failure(case, tolerance=tolerance, others=cases) is None
        told = conformance.failure(changed, tolerance=tolerance, others=others)
        assert told, case["id"]


def test_a_response_whose_output_is_no_list_has_no_text():
    for output in ("text", None, 3, ["text", None], {"type": "message"}):
        response = {"output": output}
        case = {"kind": "extract", "inputs": {"response_obj": response}}
        assert conformance.CHECKS["extract"](case)["text"] == ""
