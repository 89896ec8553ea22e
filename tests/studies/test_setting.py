"""The named sizes of the comparison."""

import json
import shlex

import pytest

from sigmoid_attention.nn.models import PRESETS
from sigmoid_attention.studies.retrieval import task_batches
from sigmoid_attention.studies.setting import COMPARE_PRESETS, compare_setting


@pytest.mark.parametrize("preset", COMPARE_PRESETS)
def test_every_preset_fits_together(preset):
    setting = compare_setting(preset)
    assert setting.text.model == PRESETS[preset]
    for task in (setting.recall, setting.copying):
        inputs, targets = task_batches(task, seed=1).batch(0)
        assert inputs.shape == targets.shape == (task.batch_size, task.model.max_seq_len)
        assert task.steps % task.test_every == 0
    json.dumps(setting.to_dict())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"preset": "huge"}, "preset must be one of tiny, small, medium, got 'huge'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        compare_setting(**arguments)


def test_the_command_makes_the_same_setting_again():
    setting = compare_setting("tiny", data="my texts/all", seeds=5, steps=7)
    words = shlex.split(setting.to_dict()["command"])[2:]
    said = {
        name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }
    assert said == {
        "data": "my texts/all", "preset": "tiny", "steps": "7", "seeds": "5", "device": "cpu",
    }  # fmt: skip
