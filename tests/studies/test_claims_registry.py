"""Which studies there are, and that each keeps to what a study is."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest

from sigmoid_attention.studies import claims_registry


def test_a_name_that_no_study_has_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"name must be one of p2_table, .*, got 'p4'"):
        claims_registry.chosen(["p2_table", "p4"])


def test_no_study_of_the_folder_is_forgotten():
    studies = Path(claims_registry.__file__).parent
    for room, names in claims_registry.ROOMS.items():
        files = (studies / room).glob("*.py")
        assert {path.stem for path in files if "\nSTUDY = " in path.read_text()} == set(names)
    every = claims_registry.names()
    assert len(set(every)) == len(every)


def test_studies_come_in_the_order_of_the_report_and_once():
    asked = ["p3_table", "p2_table", "p3_table"]
    assert [study.name for study in claims_registry.chosen(asked)] == ["p2_table", "p3_table"]
    assert [study.name for study in claims_registry.chosen([])] == claims_registry.names()


def test_the_name_of_a_room_stands_for_all_that_is_in_it():
    found = [
        study.name for study in claims_registry.chosen(["theory", "p2_table", "regularity_depth"])
    ]
    assert found == ["p2_table", *claims_registry.ROOMS["theory"]]


@pytest.mark.parametrize("name", claims_registry.names())
def test_a_study_says_what_it_is_and_its_tasks_can_travel(name):
    study = claims_registry.study(name)
    assert study.name == name
    assert all((study.title, study.claim, study.source, study.rule))
    tasks = study.tasks()
    assert tasks and all(task.work > 0 for task in tasks)
    assert pickle.loads(pickle.dumps(tasks)) == tasks
    assert all(json.dumps(asdict(task.setting)) for task in tasks)
    # Two tasks of one key and part would count one measurement twice.
    assert len({(task.key, task.cell, task.part) for task in tasks}) == len(tasks)
