"""Runs the command as `python -m sigmoid_attention.cli`, if it is not on the path."""

import sys

from sigmoid_attention.cli import main

sys.exit(main())
