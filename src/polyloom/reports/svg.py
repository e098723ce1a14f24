"""SVG that may stand inside a page: nothing that acts or loads, colours as classes, names that no other figure has."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from polyloom.core.errors import PolyloomError
from polyloom.reports.text import clean, one_line

# Drawn with these stand-in colours; the page's style sheet gives each role a colour for light and for dark.
ROLES = {
    **{f"p{index}": f"#0a01{index:02x}" for index in range(1, 7)},
    "ink": "#0a0200",
    "soft": "#0a0201",
    "rule": "#0a0202",
    "paper": "#0a0203",
}
_ROLE_OF = {colour: role for role, colour in ROLES.items()}
_TAGS = frozenset(
    re.findall(r"\S+", "svg g path rect circle ellipse line polyline polygon text tspan defs clipPath use title desc")
)
_ATTRIBUTES = frozenset(
    re.findall(
        r"\S+",
        "d x y x1 y1 x2 y2 dx dy cx cy r rx ry width height points transform viewBox class clip-path clip-rule fill "
        "fill-opacity fill-rule stroke stroke-width stroke-opacity stroke-dasharray stroke-dashoffset stroke-linecap "
        "stroke-linejoin stroke-miterlimit opacity text-anchor dominant-baseline font-size font-weight font-style",
    )
)
_FONT_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)px")
_LOCAL_URL = re.compile(r"url\(#([^)\s]+)\)")


def embed(svg: str, prefix: str, title: str, description: str) -> str:
    """Return SVG markup for the inside of a page, with an accessible name and description.

    Args:
        svg: a whole SVG document, from whoever drew it.
        prefix: what its identifiers start with; no two figures of a page share it.
        title: the figure's accessible name.
        description: what a person who does not see the figure is told.

    Raises:
        PolyloomError: it is not SVG.
    """
    root = _parse(svg)
    _strip(root)
    _number_identifiers(root, prefix)
    for child in [child for child in root if child.tag in ("title", "desc")]:
        root.remove(child)
    for tag, text in (("desc", description), ("title", title)):
        named = Element(tag, {"id": f"{prefix}-{tag}"})
        named.text = one_line(text)
        root.insert(0, named)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title")
    root.set("aria-describedby", f"{prefix}-desc")
    return ElementTree.tostring(root, encoding="unicode")


def replace_texts(svg: str, texts: dict[str, str]) -> str:
    """Return the SVG with each text that is a key of `texts` replaced by its value."""
    root = _parse(svg)
    _strip(root)
    for node in root.iter("text"):
        if node.text in texts:
            node.text = clean(texts[node.text])
    return ElementTree.tostring(root, encoding="unicode")


def _parse(svg: str) -> Element:
    if "<!ENTITY" in svg:
        raise PolyloomError("a figure declares XML entities, which no figure needs.")
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise PolyloomError(f"a figure is not SVG: {error}.") from None
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    if root.tag != "svg":
        raise PolyloomError(f"a figure is not SVG: its root is <{root.tag}>.")
    return root


def _strip(node: Element) -> None:
    """Keep the tags and attributes that draw, and turn styles into attributes and classes."""
    kept = {name: value for name, value in node.attrib.items() if name in _ATTRIBUTES}
    for name, value in node.attrib.items():
        if name.rpartition("}")[2] == "href" and value.startswith("#"):
            kept["href"] = value
    if "id" in node.attrib:
        kept["id"] = node.attrib["id"]
    kept |= {name: value for name, value in _declarations(node.get("style", "")).items() if name in _ATTRIBUTES}
    node.attrib.clear()
    classes = kept.pop("class", "").split()
    for name, value in kept.items():
        role = _ROLE_OF.get(value)
        if role and name in ("fill", "stroke"):
            classes.append(f"{name}-{role}")
        elif "url(" not in value.lower() or _LOCAL_URL.fullmatch(value):
            node.set(name, value)
    if classes:
        node.set("class", " ".join(classes))
    node.tail = node.tail if node.tail and node.tail.strip() else None
    for child in list(node):
        if child.tag in _TAGS:
            _strip(child)
        else:
            node.remove(child)


def _declarations(style: str) -> dict[str, str]:
    pairs = (part.partition(":") for part in style.split(";") if ":" in part)
    found = {name.strip().lower(): value.strip() for name, _, value in pairs}
    font = found.pop("font", "")
    if size := _FONT_SIZE.search(font):
        found["font-size"] = size[1]
    if "bold" in font or re.search(r"\b[6-9]00\b", font):
        found["font-weight"] = "600"
    if "font-size" in found:
        found["font-size"] = found["font-size"].removesuffix("px")
    return found


def _number_identifiers(root: Element, prefix: str) -> None:
    """Rename the identifiers that something refers to, and drop the others."""
    used: dict[str, str] = {}
    for node in root.iter():
        for name in ("href", "clip-path"):
            value = node.get(name, "")
            match = _LOCAL_URL.fullmatch(value)
            old = match[1] if match else value.removeprefix("#") if name == "href" else ""
            if old:
                new = used.setdefault(old, f"{prefix}-{len(used) + 1}")
                node.set(name, f"url(#{new})" if match else f"#{new}")
    for node in root.iter():
        if "id" in node.attrib:
            old = node.attrib.pop("id")
            if old in used:
                node.set("id", used[old])
