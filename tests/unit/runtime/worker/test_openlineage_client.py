"""OpenLineage: a server on loopback and a file get events of a run; none can end it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.store.lineage.openlineage import identify_run
from nemotron_style.runtime.worker.openlineage_transport import make_transport
from worker_run import carry_out

pytest.importorskip("jsonschema", reason="jsonschema is not installed")
from openlineage_schema import check_event

KEY = "0123456789abcdef0123456789abcdef01234567"
PARENT = "3f5e83fa-3480-44ff-99c5-ff943904e5e8"


class Endpoint(HTTPServer):
    """What was posted, and what is answered."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, str, dict[str, Any]]] = []
        self.answer = 201
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for _, _, event in self.got]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.got.append((self.path, self.headers.get("Authorization", ""), event))
        self.send_response(server.answer)
        if server.answer == 302:
            self.send_header("Location", f"{server.url}/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_gets_valid_events_of_every_run(
    tracked: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", endpoint.url + "/")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", KEY)
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "lab")
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", f"airflow/mill.daily/{PARENT}")
    code, folder = carry_out(tracked, "mill/grind")
    assert code == 0
    assert {(path, key) for path, key, _ in endpoint.got} == {("/api/v1/lineage", f"Bearer {KEY}")}
    for event in endpoint.events:
        check_event(event)
    assert [(e["job"]["name"], e["eventType"]) for e in endpoint.events] == [
        ("mill/grow", "START"),
        ("mill/grow", "COMPLETE"),
        ("mill/grind", "START"),
        ("mill/grind", "COMPLETE"),
    ]
    *_, start, end = endpoint.events
    assert start["run"]["runId"] == end["run"]["runId"] == identify_run(folder.run_id, 1)
    assert start["inputs"][0]["name"] == "mill-grow-default"
    assert start["outputs"] == []
    assert "mill-grind-default" in [each["name"] for each in end["outputs"]]
    assert end["run"]["facets"]["parent"]["run"] == {"runId": PARENT}
    assert end["run"]["facets"]["nemotronStyle_run"]["environment"]["python"]
    record = tracked.store.resolve("mill-grind-default").record
    assert record.producer.trackers == {"openlineage": end["run"]["runId"]}
    for path in tracked.root.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_run_that_fails_and_goes_on_is_two_runs_there(
    tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my events.ndjson"
    monkeypatch.setenv("OPENLINEAGE_URL", file.as_uri())
    words = "save_every=2", "raise_at=3"
    assert carry_out(tracked, "mill/grow", *words)[0] == 1
    _, folder = carry_out(tracked, "mill/grow", *words)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    for event in events:
        check_event(event)
    assert [event["eventType"] for event in events] == ["START", "FAIL"] * 2
    assert [event["run"]["runId"] for event in events[::2]] == [
        identify_run(folder.run_id, number) for number in (1, 2)
    ]
    assert "mill stone broke" in events[1]["run"]["facets"]["errorMessage"]["message"]


@pytest.mark.parametrize("answer", [500, 302, None])
def test_an_endpoint_that_fails_costs_one_line(
    tracked: Any,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: int | None,
) -> None:
    endpoint.answer = answer or 201
    host = endpoint.url if answer else "http://127.0.0.1:1"
    monkeypatch.setenv("OPENLINEAGE_URL", host)
    assert carry_out(tracked, "mill/grow")[0] == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "OpenLineage" in line]
    assert len(told) == 1
    assert "OpenLineage is not told" in told[0]
    assert str(answer or "refused") in told[0]
    assert {path for path, _, _ in endpoint.got} <= {"/api/v1/lineage"}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kafka://host", "'kafka://host' is neither http://"),
        ("http://ada:lovelace@host", "'http://host' was given with a user"),
    ],
)
def test_what_cannot_be_meant_is_said_and_ends_nothing(
    tracked: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    told: str,
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", url)
    assert carry_out(tracked, "mill/grow")[0] == 0
    out = capsys.readouterr().out
    assert told in out
    assert "lovelace" not in out


def test_nothing_is_sent_when_it_is_disabled(
    tracked: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", endpoint.url)
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert carry_out(tracked, "mill/grow")[0] == 0
    assert endpoint.got == []


def test_the_endpoint_below_the_url_can_be_another() -> None:
    variables = {"OPENLINEAGE_ENDPOINT": "/openapi/openlineage/api/v1/lineage"}
    transport = make_transport("https://hub", variables)
    assert transport.url == "https://hub/openapi/openlineage/api/v1/lineage"
    assert KEY not in repr(make_transport("https://hub", {"OPENLINEAGE_API_KEY": KEY}))
