"""The table in ``docs/steps/rl-rlhf-nemo-rl.md`` of what one config becomes in each version.

``python tests/shared/nemo_rl_page.py`` writes it into the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where this file is run as a script
from nemo_rl_configs import case_values
from nemotron_style.runtime.config.model import flatten
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

PAGE = Path(__file__).resolve().parents[2] / "docs" / "steps" / "rl-rlhf-nemo-rl.md"
BEGIN, END = "<!-- versions: begin -->", "<!-- versions: end -->"
ABSENT = object()


def render_table() -> str:
    """The keys of the compiled YAML that are not the same in all versions, one a row."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    compiled = {v: flatten(case_values(f"{v}-one_node-megatron").values) for v in Version}
    yield f"| key | {' | '.join(Version)} |"
    yield "|---" * (len(Version) + 1) + "|"
    for key in sorted({key for values in compiled.values() for key in values}):
        row = [compiled[version].get(key, ABSENT) for version in Version]
        if any(value != row[0] for value in row):
            yield f"| `{_short(key)}` | {' | '.join(map(_cell, row))} |"


def _short(key: str) -> str:
    """The key without the part that every key of its server shares."""
    return key.replace(
        "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare.",
        "...genrm_compare.",
    ).replace("env.nemo_gym.genrm_model.responses_api_models.genrm_model.", "...genrm_model.")


def _cell(value: Any) -> str:
    if value is ABSENT:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if len(text) <= 48 else f"`{text[:45]}...`"


def with_table(page: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render_table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
