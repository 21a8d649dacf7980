"""Why two plans are two runs: what differs between their identities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemotron_style.runtime.validation import flatten

_SAID_LAST = ("code", "config_class", "entrypoint", "generation", "outputs")


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, one line a key: ``seed: 1 -> 2``."""
    before, after = _flatten(old), _flatten(new)
    differing = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    lines = []
    for path in sorted(differing, key=lambda path: (path[0] in _SAID_LAST, path)):
        if path == ("code",):
            digests = (str(side.get("code", ""))[:12] for side in (old, new))
            lines.append(f"code of the step changed ({' -> '.join(digests)})")
        else:
            shown = (side.get(path, "(absent)") for side in (before, after))
            lines.append(f"{_name_part(path)}: {' -> '.join(shown)}")
    return lines


def _flatten(identity: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
    """The JSON text of every key of an identity, under the path of parts that leads to it.

    Keys of the config stay below ``config``, where one that is called ``code`` hides nothing.
    """
    flat: dict[tuple[str, ...], str] = {}
    for key, value in identity.items():
        if key == "config":
            for top, setting in value.items():  # an earlier version wrote ``a.b`` at the top
                below = flatten(setting, f"{top}.") if isinstance(setting, Mapping) else {}
                pairs = below or {top: setting}
                flat |= {("config", name): _write(item) for name, item in pairs.items()}
        elif key == "inputs":
            flat |= {("inputs", slot): _write(source) for slot, source in value.items()}
        elif key == "services":
            for name, service in value.items():
                parts = _flatten(service).items()
                flat |= {("services", name, *path): text for path, text in parts}
        elif key == "tree":  # the files of a step in NVIDIA's layout, and its environment
            flat |= {(key, name): _write(item) for name, item in flatten(value).items()}
        else:
            flat[key,] = _write(value)
    return flat


def _name_part(path: tuple[str, ...]) -> str:
    """A path as it is shown: keys of a config as they are typed."""
    return ".".join(part for part in path if part != "config" or part == path[-1])


def _write(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
