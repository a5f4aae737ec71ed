"""A matplotlib SVG file as an element of a page: no prolog, metadata, comments, namespaces, and no clashing names."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET  # only what matplotlib wrote here is parsed

_SVG: Final = "{http://www.w3.org/2000/svg}"
_XLINK: Final = "{http://www.w3.org/1999/xlink}"
_DROPPED: Final = ("metadata", "style")
_REFERENCE: Final = re.compile(r"url\(#([^)]+)\)")


def inline_svg(svg: bytes, name: str, label: str) -> str:
    """Return the `svg` element; names inside it begin with `name`, and `label` is what is read aloud.

    HTML knows the element without namespaces, so no address is left in it.
    """
    root = ET.fromstring(svg)  # noqa: S314 - ours
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(_SVG) in _DROPPED:
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {key.replace(_XLINK, ""): _renamed(key, text, name) for key, text in element.items()}
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _renamed(key: str, text: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    if key.endswith("href") and text.startswith("#"):
        return f"#{name}-{text[1:]}"
    return _REFERENCE.sub(rf"url(#{name}-\1)", text)
