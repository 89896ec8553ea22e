"""The tools of all studies: rows, a store, statistics, parallel sweeps, figures and pages."""

from sigmoid_attention.extras import require_lab

require_lab(__name__)
