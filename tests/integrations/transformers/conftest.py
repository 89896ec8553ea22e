"""Silences the output of transformers while its models are loaded."""

import pytest
import transformers


@pytest.fixture(autouse=True, scope="package")
def quiet():
    """Errors only, and no bars."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def pytest_configure(config: pytest.Config) -> None:
    # Dynamo follows transformers through functions that it caches, and says so once.
    config.addinivalue_line("filterwarnings", "ignore:Dynamo detected a call to a:UserWarning")
