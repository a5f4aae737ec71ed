"""Text and numbers of every kind that files can carry."""

from __future__ import annotations

import re

from hypothesis import strategies as st

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

ODD = st.sampled_from(
    (
        "",
        "\0",
        "\n",
        "\r\n",
        "\x1b[31m",
        "\x7f\x85\u2028\u2029",
        "\\u0041",
        '"},{"',
        "\udc80",
        "\ud800",
        "\ufeff",
        "🐈",
        "é",
    )
)
ANY = st.text(st.characters(exclude_categories=()), max_size=30) | st.lists(ODD, max_size=5).map("".join)
TEXTS = ANY.filter(lambda text: not _PAIR.search(text))
"""Any text, stray surrogates included (names of files in odd bytes); two that make a pair are another character."""

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
