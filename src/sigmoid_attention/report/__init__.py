"""Writes a comparison as one self-contained HTML file: `page.render`."""

from sigmoid_attention.extras import require_lab

require_lab(__name__)
