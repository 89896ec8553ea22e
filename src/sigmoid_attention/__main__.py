"""`python -m sigmoid_attention`, an entry point that needs no command on the PATH."""

import sys

from sigmoid_attention.cli import main

sys.exit(main())
