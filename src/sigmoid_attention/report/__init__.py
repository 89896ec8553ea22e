"""The comparison as an HTML page: `page.render` writes one self-contained file."""

from sigmoid_attention.extras import require_lab

require_lab(__name__)
