"""`python -m sigmoid_attention`, where the command itself is not on the path."""

import sys

from sigmoid_attention.cli import main

sys.exit(main())
