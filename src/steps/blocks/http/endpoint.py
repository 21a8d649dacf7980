"""Addresses of services, as people write them, and the tokens that services ask for."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import ConfigError, Problem

ENDPOINT = "endpoint.json"
EVERYWHERE = ("0.0.0.0", "::")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Address:
    """``scheme://host:port`` and the path that everything is below."""

    scheme: str
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def read_address(host: str, port: int | None = None, *, key: str = "host") -> Address:
    """An address from a URL, or from NeMo-Aligner's ``host`` and ``port``.

    Raises ``ConfigError`` for other schemes, for user names and queries, for a missing port, and
    for two that differ.
    """
    text = host if "://" in host else f"http://{_bracket(host)}"
    try:
        parts = urlsplit(text)
        own_port = parts.port
    except ValueError as error:
        raise _refuse(key, host, str(error)) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refuse(key, host, "is neither a host nor an http or https URL")
    if parts.username is not None or parts.query or parts.fragment:
        raise _refuse(key, host, "must hold no user, no query and no fragment")
    if None not in (own_port, port) and own_port != port:
        raise _refuse(key, host, f"names another port than port={port}")
    if own_port is not None:
        port = own_port
    if port is None and "://" in host:
        port = 443 if parts.scheme == "https" else 80
    if port is None or not 0 < port < 65536:
        raise _refuse(key, host, "needs a port between 1 and 65535")
    return Address(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def read_token(name: str | None) -> str | None:
    """The token in the environment variable ``name``; None where no variable is named.

    Raises ``ConfigError`` when it is not there or does not fit into a header; no message shows it.
    """
    if name is None:
        return None
    token = os.environ.get(name, "")
    if _TOKEN.fullmatch(token):
        return token
    what = "holds what no header can" if token else "is not in the environment"
    fix = f"export {name}, and name it under secrets in the profile"
    raise ConfigError(Problem(key="token_env", what=f"the variable {name} {what}", fix=fix))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def write_endpoint(run_dir: Path, address: Address, **facts: Any) -> Path:
    """Write ``endpoint.json`` into a run's folder, where others find the service; its path.

    For a service that listens at every address, the URL has the name of its machine.
    """
    reachable = address
    if address.host in EVERYWHERE:
        reachable = replace(address, host=socket.gethostname())
    endpoint = {"url": str(reachable), "host": address.host, "port": address.port, **facts}
    path = run_dir / ENDPOINT
    write_json(path, endpoint)
    return path


def _bracket(host: str) -> str:
    """An IPv6 address as URLs write it."""
    bare = host.count(":") > 1 and not host.startswith("[")
    return f"[{host}]" if bare else host


def _refuse(key: str, got: str, what: str) -> ConfigError:
    return ConfigError(Problem(key=key, what=what, got=repr(_hide(got))))


def _hide(text: str) -> str:
    """Without what may be a password."""
    return re.sub(r"//[^/@]*@", "//...@", text)
