"""The registry holds every study, and each study fulfils the interface of a study."""

import importlib
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest

from sigmoid_attention.cli.arguments import command_name, parse
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies import registry
from sigmoid_attention.studies.mixtures import rate_tables
from sigmoid_attention.studies.registry import (
    CLAIM_STUDIES,
    COMMAND_STUDIES,
    claim_names,
    claim_study,
    select_claims,
)


@pytest.mark.parametrize("study", COMMAND_STUDIES, ids=lambda study: study.name)
def test_a_study_runs_by_its_command_and_states_its_rule(study):
    argv = study.command.split()[1:]
    assert command_name(type(parse(argv))) == study.name == argv[0]
    assert "ule" in importlib.import_module(study.rule).__doc__
    assert study.question.endswith("?")


@pytest.mark.parametrize("study", COMMAND_STUDIES, ids=lambda study: study.name)
def test_the_state_of_a_folder_is_that_of_its_own_study(study, tmp_path):
    assert study.state(tmp_path) == "none"
    folder = tmp_path / study.subfolder
    store = Store(folder, {study.setting_key: 1}, {}, resume=False)
    assert study.state(tmp_path) == "begun"
    store.merge() if study.result == "rows.parquet" else (folder / study.result).mkdir()
    assert study.state(tmp_path) == "complete"
    others = [other for other in COMMAND_STUDIES if other is not study]
    assert {other.state(tmp_path) for other in others} == {"none"}


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"name must be one of nguyen2024_table, .*, got 'p4'"):
        select_claims(["nguyen2024_table", "p4"])


@pytest.mark.parametrize("study", COMMAND_STUDIES, ids=lambda study: study.name)
def test_a_study_with_its_own_command_is_refused_with_that_command(study):
    with pytest.raises(ValueError, match=f"a command of its own: {study.command}"):
        claim_study(study.name)


def test_no_study_of_the_folders_is_missing():
    studies = Path(registry.__file__).parent
    for group, names in CLAIM_STUDIES.items():
        files = (studies / group).glob("*.py")
        modules = {path.stem for path in files if "\nSTUDY = " in path.read_text()}
        assert modules | rate_tables.STUDIES.keys() >= set(names) >= modules
    assert list(rate_tables.STUDIES) == list(registry.SHARED_MODULES)
    every = [*claim_names(), *(study.name for study in COMMAND_STUDIES)]
    assert len(set(every)) == len(every)


def test_studies_come_in_the_order_of_the_report_and_once():
    names = ["yan2025_table", "nguyen2024_table", "yan2025_table"]
    assert [study.name for study in select_claims(names)] == ["nguyen2024_table", "yan2025_table"]
    assert [study.name for study in select_claims([])] == claim_names()


def test_the_name_of_a_group_selects_all_its_studies():
    selected = select_claims(["theory", "nguyen2024_table", "regularity_depth"])
    assert [study.name for study in selected] == ["nguyen2024_table", *CLAIM_STUDIES["theory"]]


@pytest.mark.parametrize("name", claim_names())
def test_a_study_describes_itself_and_its_tasks_can_be_pickled(name):
    study = claim_study(name)
    assert study.name == name
    assert all((study.title, study.claim, study.source, study.rule))
    tasks = study.tasks()
    assert tasks and all(task.work > 0 for task in tasks)
    assert pickle.loads(pickle.dumps(tasks)) == tasks
    assert all(json.dumps(asdict(task.setting)) for task in tasks)
    # Two tasks of one key and part would count one measurement twice.
    assert len({(task.key, task.cell, task.part) for task in tasks}) == len(tasks)
