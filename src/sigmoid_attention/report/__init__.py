"""The comparison as a page to read: `render` writes one self-contained HTML file."""

from sigmoid_attention.report.page import render

__all__ = ["render"]
