from functools import cache

import pytest

from sigmoid_attention.report.chart import Panel


@pytest.fixture(scope="session", autouse=True)
def panels_are_drawn_once():
    """Pages of synthetic comparisons share most of their panels; to draw one takes 0.05 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Panel, "svg", cache(Panel.svg))
        yield
