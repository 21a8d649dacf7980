"""The tables of ``docs/steps/rl-rlhf-preflight.md``, made from the rules themselves.

``python tests/shared/preflight_page.py`` writes them into the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemotron_style.steps.rl.rlhf.nemo_rl.rules.check import SUBJECTS
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Rule, rules_of
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

PAGE = Path(__file__).resolve().parents[2] / "docs" / "steps" / "rl-rlhf-preflight.md"
BEGIN, END = "<!-- rules: begin -->", "<!-- rules: end -->"


def render_versions(rule: Rule) -> str:
    """The versions that have a rule, in a few words."""
    versions = [version for version in Version if rule.holds_at(version)]
    if len(versions) == len(Version):
        return "all"
    if versions[-1] == Version.V0_8_0:
        return f"from {versions[0]}"
    return f"up to {versions[-1]}" if versions[0] == Version.V0_6_0 else ", ".join(versions)


def render_tables() -> str:
    """One table a subject, in the order in which they are checked."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for subject in SUBJECTS:
        title = (subject.__doc__ or "").strip().rstrip(".")
        yield f"\n### {title}\n"
        yield "| rule | versions | what is asked | otherwise, upstream |"
        yield "|---|---|---|---|"
        for rule in rules_of(subject):
            advice = " (advice)" if rule.is_advice else ""
            asked = rule.says.replace("|", "\\|")
            upstream = rule.upstream.replace("|", "\\|")
            row = (f"`{rule.name}`{advice}", render_versions(rule), asked)
            yield f"| {' | '.join(row)} | {rule.effect}: {upstream} |"
    yield ""


def renew(text: str) -> str:
    """The page with the tables of today."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{render_tables()}{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(renew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
