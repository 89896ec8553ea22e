"""Every study has a command, and its rule where the registry says."""

import importlib

import pytest

from sigmoid_attention.cli.arguments import parse
from sigmoid_attention.studies.registry import STUDIES


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_runs_by_its_name_and_states_its_rule(study):
    assert type(parse([study.name])).__name__.lower() == study.name
    assert "ule" in importlib.import_module(study.rule).__doc__
    assert study.question.endswith("?")
