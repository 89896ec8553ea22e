"""Colours for light and dark pages: the palette, its CSS, and matplotlib's SVG with CSS classes.

Figures are drawn with the light colours. In their SVG each colour of the palette becomes a class
(``stroke-blue``, ``fill-ink``), whose colour the style sheet sets for light and dark pages.
"""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element


class Colour(NamedTuple):
    """One colour on light pages and on dark ones."""

    light: str
    dark: str


# Hues after Okabe and Ito, which readers with any colour vision can distinguish. The second half
# has lighter shades, for filled marks and thick lines.
PALETTE = {
    "paper": Colour("#fdfdfb", "#16181a"),
    "ink": Colour("#1d1f21", "#e4e4e0"),
    "quiet": Colour("#5d6266", "#a0a5a9"),
    "hair": Colour("#dcdcd6", "#363a3d"),
    "slate": Colour("#3d4246", "#c6cacd"),
    "blue": Colour("#0067a8", "#62b6ee"),
    "vermilion": Colour("#c44e00", "#f19a4b"),
    "green": Colour("#007a5a", "#3cc79b"),
    "purple": Colour("#a8558a", "#dd9ac4"),
    "ochre": Colour("#8a6d00", "#d9bf3c"),
    "azure": Colour("#0072b2", "#4aa8e0"),
    "teal": Colour("#009e73", "#2fc296"),
    "sky": Colour("#56b4e9", "#8fd0f7"),
    "orange": Colour("#d55e00", "#f08a3c"),
    "pink": Colour("#cc79a7", "#e3a3c6"),
    "amber": Colour("#e69f00", "#f2bd4a"),
    "brown": Colour("#8c564b", "#c48f83"),
    "grey": Colour("#7f7f7f", "#a6a6a6"),
    "black": Colour("#000000", "#ffffff"),
}
FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

# Names by the shade on light pages; white is matplotlib's default background.
_NAMES = {colour.light: name for name, colour in PALETTE.items()} | {"#ffffff": "paper"}
# Ids that matplotlib generates; other ids were set by `set_gid`.
_OWN_ID = re.compile(r"[A-Za-z.0-9]+_\d+")
_DECIMALS = re.compile(r"-?\d+\.\d+")
_DROPPED_TAGS = ("metadata", "style")


def style_sheet(names: Collection[str] = PALETTE.keys()) -> str:
    """Colours as CSS variables of the page's colour scheme, and the classes that use them."""
    light, dark = (
        "".join(f"  --{name}: {getattr(PALETTE[name], scheme)};\n" for name in names)
        for scheme in ("light", "dark")
    )
    classes = "".join(
        f".{kind}-{name} {{ {kind}: var(--{name}); }}\n"
        for name in names
        for kind in ("fill", "stroke")
    )
    return (
        f":root {{\n  color-scheme: light dark;\n{light}  --plain: {FONTS};\n}}\n"
        f"@media (prefers-color-scheme: dark) {{\n:root {{\n{dark}}}\n}}\n{classes}"
        # matplotlib omits black, the default of SVG.
        "svg { fill: var(--ink); stroke-linejoin: round; }\n"
        "svg text { font-family: var(--plain); font-variant-numeric: tabular-nums; }\n"
        # An outline in the background's colour around text that overlaps marks.
        "svg .note text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }\n"
    )


def with_classes(svg: bytes) -> Element:
    """matplotlib's SVG without namespaces, with classes in place of colours and of `set_gid`.

    Colours outside the palette are kept.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    _simplify(root)
    for name in list(root.attrib):
        if name not in ("viewBox", "width", "height"):
            del root.attrib[name]
    ElementTree.indent(root, "")
    return root


def standalone(root: Element, title: str = "") -> bytes:
    """An SVG file with a style sheet for its colours."""
    classes = {word for element in root.iter() for word in element.get("class", "").split()}
    used = {word.removeprefix("fill-").removeprefix("stroke-") for word in classes}
    names = [name for name in PALETTE if name in used | {"ink", "paper"}]
    root.set("xmlns", "http://www.w3.org/2000/svg")
    style = Element("style")
    style.text = f"\n{style_sheet(names)}"
    root.insert(0, style)
    if title:
        root.set("role", "img")
        label = Element("title")
        label.text = title
        root.insert(0, label)
    return ElementTree.tostring(root, "utf-8") + b"\n"


def inline(root: Element, label: str = "") -> str:
    """An `<svg>` element for a page with the style sheet; it scales with its box.

    Without a `label` it is hidden from screen readers.
    """
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    if label:
        root.set("role", "img")
        root.set("aria-label", label)
    else:
        root.set("aria-hidden", "true")
    return ElementTree.tostring(root, "unicode")


def _simplify(parent: Element) -> None:
    """Rewrite all descendants; groups without attributes are replaced by their children."""
    children: list[Element] = []
    for child in parent:
        _rewrite(child, in_defs=parent.tag == "defs")
        _simplify(child)
        if child.tag in _DROPPED_TAGS or _is_invisible(child):
            continue
        if child.tag in ("g", "defs") and not len(child):
            continue
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = children


def _rewrite(element: Element, in_defs: bool) -> None:
    for name in list(element.attrib):
        if name.startswith("{"):
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
    if element.tag not in ("text", "tspan"):
        element.text = None
    element.tail = None
    classes = list(_classes(element, in_defs))
    if element.tag == "g" and (name := element.attrib.pop("id", "")):
        classes += [] if _OWN_ID.fullmatch(name) else [name]
    if classes:
        element.set("class", " ".join(classes))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for name in ("d", "x", "y", "transform"):
        if value := element.get(name):
            element.set(name, _DECIMALS.sub(_rounded, " ".join(value.split())))


def _classes(element: Element, in_defs: bool) -> Iterator[str]:
    """Remove the palette's colours from the element's style, and yield their classes."""
    style = dict(
        part.split(": ", 1) for part in element.attrib.pop("style", "").split("; ") if part
    )
    style.pop("font-family", None)
    for kind in ("fill", "stroke"):
        name = _NAMES.get(style.get(kind, ""))
        if in_defs:
            # A marker inherits its colours from the element that uses it.
            style.pop(kind, None)
        elif name:
            del style[kind]
            yield f"{kind}-{name}"
    if style:
        element.set("style", "; ".join(f"{name}: {value}" for name, value in style.items()))


def _is_invisible(element: Element) -> bool:
    return element.attrib.keys() <= {"d", "style"} and element.get("style") == "fill: none"


def _rounded(number: re.Match[str]) -> str:
    # Adding zero avoids "-0".
    return f"{round(float(number[0]), 2) + 0.0:g}"
