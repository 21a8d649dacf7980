"""The toy's words: two classes of nouns, and six adjectives that fit each class.

A model of a third of a million weights has to find out which adjective fits which noun from whole
answers and their labels. With these many words it does so in about 250 updates of 96 rows; with
three times as many it sits at chance for several times as long.
"""

from __future__ import annotations

NOUNS = {
    "water": "river lake pond stream canal harbor",
    "animal": "horse dog cat fox owl rabbit",
}
ADJECTIVES = {
    "water": "wide calm deep clear shallow muddy",
    "animal": "tame shy hungry playful loyal swift",
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
