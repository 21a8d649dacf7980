"""Where events of OpenLineage go: an HTTP endpoint, or a file with one event a line.

The variables are those of OpenLineage's own clients: ``OPENLINEAGE_URL`` (``http://``,
``https://``, or ``file://`` for a file), ``OPENLINEAGE_ENDPOINT`` (the path below it),
``OPENLINEAGE_API_KEY``, and ``OPENLINEAGE_DISABLED``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nemotron_style.runtime.store.ref import strip_user

URL_VARIABLE = "OPENLINEAGE_URL"
SECONDS = 5.0
ENDPOINT = "api/v1/lineage"


@dataclass(frozen=True)
class Transport:
    """An endpoint, or a file where ``url`` begins with ``file:``."""

    url: str
    key: str = field(default="", repr=False)

    @property
    def where(self) -> str:
        """The place in words, without a user's name or password."""
        return strip_user(self.url)

    def send(self, event: Mapping[str, Any]) -> None:
        """Hand one event over. Raises OSError when that is not possible."""
        text = json.dumps(event, ensure_ascii=False)
        if self.url.startswith("file:"):
            # One write for each line: of several writers of a file none cuts another's in two.
            with open(unquote(urlsplit(self.url).path), "a", encoding="utf-8") as file:
                file.write(text + "\n")
            return
        self._post(text)

    def _post(self, text: str) -> None:
        # Imported by those alone who send: it takes longer than all the rest of this room.
        from urllib.error import HTTPError
        from urllib.request import HTTPRedirectHandler, Request, build_opener

        headers = {"Content-Type": "application/json", "User-Agent": "nemotron-style"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = Request(self.url, text.encode(), headers, method="POST")
        stay = HTTPRedirectHandler()
        # An answer that leads elsewhere is an error: the key is for the endpoint that was named.
        stay.redirect_request = lambda *_: None  # type: ignore[method-assign]
        try:
            with build_opener(stay).open(request, timeout=SECONDS):
                pass
        except HTTPError as error:
            raise ConnectionError(f"{self.where} answers {error.code} {error.reason}") from None


def is_wanted(variables: Mapping[str, str]) -> bool:
    """Whether the environment asks for events."""
    disabled = variables.get("OPENLINEAGE_DISABLED", "").lower() in ("true", "1")
    return bool(variables.get(URL_VARIABLE)) and not disabled


def make_transport(url: str, variables: Mapping[str, str]) -> Transport:
    """``url`` with the endpoint and the key that the environment names.

    Raises ValueError for anything but ``http://``, ``https://`` and ``file://``, and for a URL
    with a user's name.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https", "file") or not rest:
        raise ValueError(f"{strip_user(url)!r} is neither http://, https:// nor file://")
    if "@" in urlsplit(url).netloc:
        raise ValueError(f"{strip_user(url)!r} was given with a user; the key is a variable")
    if scheme == "file":
        return Transport(url)
    endpoint = variables.get("OPENLINEAGE_ENDPOINT") or ENDPOINT
    whole = f"{url.rstrip('/')}/{endpoint.lstrip('/')}"
    return Transport(whole, variables.get("OPENLINEAGE_API_KEY", ""))


def file_transport(path: Path) -> Transport:
    """To a file of this machine."""
    return Transport(path.absolute().as_uri())
