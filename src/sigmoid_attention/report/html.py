"""Renders the HTML templates of this folder; inserted text is escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Environment(
    loader=PackageLoader("sigmoid_attention.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=False,
)


def from_template(name: str, **values: Any) -> Markup:
    """Render a template; all `values` except `Markup` are escaped."""
    return Markup(_TEMPLATES.get_template(name).render(values))
