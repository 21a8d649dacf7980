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
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(VECTORS)], capture_output=True, text=True, check=False
    )
    count = len(json.loads(VECTORS.read_text())["cases"])
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
