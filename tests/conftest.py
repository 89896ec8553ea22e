"""What every test shares: one thread, and hypothesis without a clock and without chance."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fixed")

# Read when scipy is first imported; without it two of scikit-learn's checks of estimators skip.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

# Two workers on two cores: a second thread would only wait for the other worker.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # torch scripts parts of itself when forward mode or inductor is first used, and says so.
    config.addinivalue_line(
        "filterwarnings", "ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"
    )
    # Most tests are about other things than a model's length; the warning has tests of its own.
    config.addinivalue_line(
        "filterwarnings", "ignore:(sigmoid_)?bias. None means -log\\(number of keys\\):UserWarning"
    )
