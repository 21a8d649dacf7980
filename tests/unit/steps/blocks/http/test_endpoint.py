"""Addresses as people write them, and tokens from the environment."""

from __future__ import annotations

import pytest

from nemotron_style.runtime.errors import ConfigError
from nemotron_style.steps.blocks.http.endpoint import read_address, read_token


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("localhost", 5555, "http://localhost:5555"),
        ("10.0.0.7", 5555, "http://10.0.0.7:5555"),
        ("::1", 5555, "http://[::1]:5555"),
        ("rm.example:80", None, "http://rm.example:80"),
        ("http://rm.example:81/", None, "http://rm.example:81"),
        ("https://rm.example/v2/rm/", None, "https://rm.example:443/v2/rm"),
        ("http://[::1]:9", 9, "http://[::1]:9"),
    ],
)
def test_an_address_is_read_as_people_write_it(host: str, port: int | None, url: str) -> None:
    assert str(read_address(host, port)) == url


@pytest.mark.parametrize(
    ("host", "port", "what"),
    [
        ("localhost", None, "needs a port"),
        ("localhost", 0, "needs a port"),
        ("localhost:99999", None, "out of range"),
        ("localhost:80", 81, "another port"),
        ("ftp://localhost", 80, "neither a host"),
        ("", 80, "neither a host"),
        ("http://me:hush@localhost", 80, "no user"),
        ("http://localhost?x=1", 80, "no query"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(host: str, port: int | None, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        read_address(host, port)
    assert "hush" not in str(caught.value)


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_TOKEN", "abc")
    monkeypatch.setenv("RM_BROKEN", "hush\r\nX: y")
    assert read_token("RM_TOKEN") == "abc"
    assert read_token(None) is None
    with pytest.raises(ConfigError, match="RM_MISSING is not in the environment"):
        read_token("RM_MISSING")
    with pytest.raises(ConfigError, match="RM_BROKEN holds what no header can") as caught:
        read_token("RM_BROKEN")
    assert "hush" not in str(caught.value)
