"""The named sizes of the comparison."""

import json
import shlex

import pytest

from sigmoid_attention.cli.arguments import CompareOptions, parse
from sigmoid_attention.nn.models.recipes import recipe_settings
from sigmoid_attention.studies.compare.retrieval import task_batches
from sigmoid_attention.studies.compare.settings import COMPARE_PRESETS, compare_setting


@pytest.mark.parametrize("preset", COMPARE_PRESETS)
def test_every_preset_fits_together(preset):
    setting = compare_setting(preset)
    chosen = recipe_settings("recommended")
    assert {name: getattr(setting.text.model, name) for name in chosen} == chosen
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
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"softmax_lr": float("nan")}, "softmax_lr must be a positive number, got nan"),
        ({"lr": float("inf")}, "lr must be a positive number, got inf"),
        ({"recipe": "best"}, "recipe must be 'paper' or 'recommended', got 'best'"),
        # Its table ends at the training length, and the comparison reads on.
        ({"position": "learned"}, "position must be one of rope, .* got 'learned'"),
    ],
)
def test_contradictory_settings_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        compare_setting(**arguments)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"lr": 0.004}, {"lr": "0.004", "softmax-lr": "0.004"}),
        ({"softmax_lr": 0.01}, {"lr": "0.003", "softmax-lr": "0.01"}),
        ({"position": "alibi"}, {"position": "alibi"}),
        ({"position": "rope"}, {"position": "rope"}),
        ({"position": "rope+alibi"}, {}),
        ({"recipe": "paper"}, {"recipe": "paper"}),
        ({"recipe": "paper", "position": "rope"}, {"recipe": "paper", "position": "rope"}),
    ],
    ids=str,
)
def test_the_command_makes_the_same_setting_again(changes, options):
    setting = compare_setting("tiny", data="my texts/all", seeds=5, steps=7, **changes)
    words = shlex.split(setting.to_dict()["command"])[1:]
    chosen = {
        name.removeprefix("--"): value for name, value in zip(words[1::2], words[2::2], strict=True)
    }
    assert chosen == {
        "data": "my texts/all", "preset": "tiny", "steps": "7", "seeds": "5", "device": "cpu",
        **options,
    }  # fmt: skip
    again = parse(words)
    assert isinstance(again, CompareOptions)
    assert setting == compare_setting(
        again.preset, data=again.data, seeds=again.seeds, steps=again.steps, device=again.device,
        lr=again.lr, softmax_lr=again.softmax_lr, recipe=again.recipe, position=again.position,
    )  # fmt: skip


def test_recipe_and_position_are_those_of_every_model():
    setting = compare_setting("tiny", position="alibi")
    for part in (setting.text, setting.recall, setting.copying):
        assert part.model.position == "alibi"
        assert part.model.bias == "neg_log_effective_length"


@pytest.mark.parametrize(("steps", "every"), [(300, 30), (7, 1), (20, 2), (3000, 300)])
def test_held_out_text_is_tested_about_ten_times_on_the_way(steps, every):
    assert compare_setting("tiny", steps=steps).text.test_every == every
