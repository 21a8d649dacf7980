"""The toy's words: four classes of nouns, and nine adjectives that fit each class."""

from __future__ import annotations

NOUNS = {
    "water": "river lake pond stream canal harbor",
    "animal": "horse dog cat fox owl rabbit",
    "building": "tower castle barn chapel cottage mill",
    "food": "soup bread cheese pie stew cake",
}
ADJECTIVES = {
    "water": "wide calm deep clear cold shallow muddy salty rippling",
    "animal": "tame shy hungry playful loyal sleepy swift curious gentle",
    "building": "tall old sturdy empty vaulted crooked spacious lofty ruined",
    "food": "tasty warm sweet crisp spicy creamy bitter fresh stale",
}
CONTEXTS = (
    "near the village",
    "behind the hill",
    "from the story",
    "in the picture",
    "of my neighbor",
    "at the market",
    "on the postcard",
    "under the moon",
    "beside the road",
    "in your dream",
)
