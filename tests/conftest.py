"""The settings of all tests: one thread, hypothesis without deadlines or randomness, and tiers."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# `make test-all` takes "ci" by --hypothesis-profile; tests/support/examples.py has the rest.
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("dev", parent=settings.get_profile("ci"), max_examples=10)
settings.load_profile("dev")

# Read when scipy is first imported; without it two of scikit-learn's checks of estimators skip.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

# A worker for each core: a second thread would only wait for another worker.
torch.set_num_threads(1)

HERE = Path(__file__).parent
# Folders and files of each marker; pyproject.toml says what the markers mean.
MARKERS = {
    "browser": ("report/test_browser.py",),
    "budgets": ("attention/impl/triton/test_budgets.py", "attention/test_cross_compile.py"),
    "compile": (
        "attention/test_compile.py",
        "attention/test_export.py",
        "attention/test_fx.py",
        "attention/test_opcheck.py",
        "attention/test_numbers_that_learn.py",
        "attention/test_index_tensors.py",
        "integrations/test_flash_attn.py",
        "integrations/test_flash_kvcache.py",
        "integrations/test_triton_sigmoid.py",
        "integrations/test_timm_traced.py",
        "nn/test_fx.py",
        "nn/test_moe.py",
        "nn/test_options_compiled.py",
        "nn/test_recording.py",
        "nn/test_router.py",
    ),
    "emulator": ("attention/impl/experimental/gluon",),
    "kernel": ("attention/impl",),
    "long": (
        "attention/test_autocast.py",
        "attention/test_derivatives.py",
        "attention/test_linear_memory.py",
        "mixtures/test_estimators.py",
        "mixtures/test_gaussian.py",
        "mixtures/test_voronoi.py",
        "report/test_page.py",
        "test_examples.py",
        "theory",
    ),
    "models": (
        "integrations/conversion",
        "integrations/moe",
        "integrations/test_timm.py",
        "integrations/transformers",
        "nn/models",
        "studies/conversion",
    ),
    "precision": ("attention/impl/cpu/test_accuracy.py",),
    "process": (
        "attention/impl/cpu/building",
        "benchmarks",
        "cli",
        "lab/test_sweep.py",
        "studies",
        "test_cli.py",
        "test_cli_studies.py",
        "test_doctor.py",
        "test_readme.py",
        "test_torch_alone.py",
        "test_torchvision_mend.py",
        "training",
    ),
    "slow": (
        "attention/impl/cpu/building/test_cache_faults.py",
        "attention/impl/cpu/building/test_sanitizers.py",
        "attention/impl/cpu/building/test_wheel.py",
        "attention/impl/triton/test_call_cache.py",
        "attention/impl/triton/test_extremes.py",
        "attention/impl/triton/test_plan.py",
    ),
}
# A function with no more cases than this runs all of them in `make test`.
FEW = 8


def pytest_configure(config: pytest.Config) -> None:
    # torch scripts parts of itself when forward mode or inductor is first used, and says so.
    config.addinivalue_line(
        "filterwarnings", "ignore:`torch.jit.script(_method)?` is deprecated:DeprecationWarning"
    )
    # Most tests are about other things than a model's length; the warning has tests of its own.
    config.addinivalue_line(
        "filterwarnings", "ignore:(sigmoid_)?bias. None means -log\\(number of keys\\):UserWarning"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the files of a place whose markers the run leaves out: that takes time."""
    return left_out(collection_path, config.option.markexpr) or None


def left_out(path: Path, expression: str) -> bool:
    """Whether an expression like "not (slow or long)" names a marker of this place."""
    match = re.fullmatch(r"not \(([\w ]+)\)", expression)
    names = match[1].split(" or ") if match else ()
    return any(
        path.is_relative_to(HERE / place) for name in names for place in MARKERS.get(name, ())
    )


# Before markers select.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the markers of folders and files, and ``matrix`` to cases beyond a sample."""
    functions = defaultdict(list)
    for item in items:
        for marker, places in MARKERS.items():
            if any(item.path.is_relative_to(HERE / place) for place in places):
                item.add_marker(marker)
        if hasattr(item, "callspec"):
            functions[item.nodeid.partition("[")[0]].append(item)
    for cases in functions.values():
        if len(cases) > FEW:
            for item in beyond_a_sample(cases):
                item.add_marker("matrix")


def beyond_a_sample(cases: list[pytest.Item]) -> list[pytest.Item]:
    """The cases without which every value of every parameter still occurs in another case.

    Where lists of ``parametrize`` are stacked, each entry of each list occurs. A list under the
    marker ``product`` holds combinations itself, so its parameters count one by one.
    """

    def values(item: pytest.Item) -> set:
        parameters = dict(item.callspec.params)
        if item.get_closest_marker("product"):
            return {(name, repr(value)) for name, value in parameters.items()}
        entries = set()
        for marker in item.iter_markers("parametrize"):
            names = marker.args[0]
            names = names.replace(" ", "").split(",") if isinstance(names, str) else names
            entries.add((*names, *(id(parameters.pop(name)) for name in names)))
        return entries | {(name, id(value)) for name, value in parameters.items()}

    every = {item: values(item) for item in cases}
    taken = Counter()
    while missing := set().union(*every.values()) - taken.keys():
        # The next has most of what is missing, beside values that few of the others have.
        best = max(
            every,
            key=lambda item: (len(every[item] & missing), -sum(taken[v] for v in every[item])),
        )
        taken.update(every.pop(best))
    return list(every)
