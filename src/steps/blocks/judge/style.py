"""How much of a text is decoration: headers, list items, bold words, emoji.

Source: NeMo-Gym's style penalty. One of its ranges, U+24C2 to U+1F251, holds all of Chinese,
Japanese and Korean, so every character of these languages counts as an emoji: use the penalty for
none of them.
"""

from __future__ import annotations

import re

_CODE = re.compile(r"```.*?```", re.DOTALL)
_COUNTED = {
    "header_count": [re.compile(r"^#{1,6}\s", re.MULTILINE)],
    "list_count": [
        re.compile(r"^\s*\d+\.\s", re.MULTILINE),
        re.compile(r"^\s*[-*+]\s", re.MULTILINE),
    ],
    "bold_count": [re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")],
}
_EMOJI_RANGES = (
    (0x1F600, 0x1F64F),
    (0x1F300, 0x1F5FF),
    (0x1F680, 0x1F6FF),
    (0x1F1E0, 0x1F1FF),
    (0x2702, 0x27B0),
    (0x24C2, 0x1F251),
    (0x1F900, 0x1F9FF),
    (0x1FA00, 0x1FA6F),
    (0x1FA70, 0x1FAFF),
    (0x2600, 0x26FF),
    (0x2700, 0x27BF),
)
_EMOJI = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _EMOJI_RANGES) + "]")


def count_style(text: str) -> dict[str, int]:
    """Headers, list items, bold spans and emoji outside of fenced code."""
    plain = _plain(text)
    counts = {
        name: sum(len(each.findall(plain)) for each in rules) for name, rules in _COUNTED.items()
    }
    return {**counts, "emoji_count": len(_EMOJI.findall(plain))}


def style_density(text: str) -> float:
    """Decorations for each character of the text without its code; 0 for none."""
    plain = _plain(text)
    return sum(count_style(text).values()) / len(plain) if plain else 0.0


def _plain(text: str) -> str:
    return _CODE.sub("", text).strip()
