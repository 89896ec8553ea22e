"""The studies behind the published claims; `compare` is one of them. Needs the extra `lab`."""

from sigmoid_attention.extras import require_lab

require_lab(__name__)
