"""What holds for every test of every folder, doctests of the sources included."""

import signal

import pytest

# Helpers assert as tests do, so a failed assertion there shows its values, too.
pytest.register_assert_rewrite("tests.support")

# A shell starts a background job with SIGINT ignored, and nohup ignores SIGHUP. Tests send both to
# themselves and expect what a terminal's job would do.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
