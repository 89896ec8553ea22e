"""The forecast of a training's needs: close to measurements, and within any limit."""

import dataclasses

import pytest
import torch

from sigmoid_attention.lab.memory import peak_tensor_bytes
from sigmoid_attention.nn.models import PRESETS, DecoderLM, ModelConfig
from sigmoid_attention.training import forecast
from sigmoid_attention.training.forecast import (
    free_bytes,
    refuse_too_large,
    training_memory,
    training_seconds,
)
from sigmoid_attention.training.optimizer import TrainConfig, decoupled_adamw

CPU = torch.device("cpu")
SIZES = {"vocab_size": 257, "dim": 64, "layers": 3, "num_heads": 2, "max_seq_len": 96}
MODELS = {
    "tiny": PRESETS["tiny"],
    "recommended": ModelConfig.recipe("recommended", **SIZES),
    "paper": ModelConfig.recipe("paper", **SIZES),
    "softmax": ModelConfig.recipe("recommended", **SIZES).as_softmax(),
    "wide hidden": ModelConfig.recipe("recommended", **SIZES, ffn_dim=700),
    "large vocabulary": ModelConfig.recipe("recommended", **{**SIZES, "vocab_size": 3000}),
    "parameters outweigh": ModelConfig.recipe(
        "recommended", **{**SIZES, "dim": 256, "max_seq_len": 16}
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_near_what_training_takes(name):
    config, batch = MODELS[name], 3
    model = DecoderLM(config)
    optimizer = decoupled_adamw(model, TrainConfig(steps=2))
    tokens = torch.randint(0, config.vocab_size, (batch, config.max_seq_len + 1))

    def step():
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()

    needed = training_memory(config, batch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert needed.parameters == parameters
    measured = peak_tensor_bytes(step, CPU) + 4 * parameters
    assert 1 / 1.5 < (needed.state + needed.step) / measured < 1.5


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(forecast, "free_bytes", lambda device: 23_000_000_000)
    with pytest.raises(ValueError, match=r"gala-7b needs about \d+ GB .* has 23 GB free.*106 GB"):
        refuse_too_large("gala-7b", PRESETS["gala-7b"], 1, CPU)
    with pytest.raises(ValueError, match=r"gala-85m .*; --batch-size 3 would fit$"):
        refuse_too_large("gala-85m", PRESETS["gala-85m"], 16, CPU)
    with pytest.raises(ValueError, match=r"--batch-size \d{4} would fit$"):
        refuse_too_large("small", PRESETS["small"], 10**9, CPU)
    refuse_too_large("small", PRESETS["small"], 16, CPU)
    monkeypatch.setattr(forecast, "free_bytes", lambda device: None)
    refuse_too_large("gala-7b", PRESETS["gala-7b"], 16, CPU)


def test_a_checkpoint_counts_where_it_is_made():
    needed = training_memory(PRESETS["tiny"], 1)
    small = dataclasses.replace(needed, step=1)
    assert small.peak(CPU) == small.state + small.checkpoint
    assert small.peak(torch.device("cuda")) == small.state + 1


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A machine of the test's own making: files as Linux has them."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(forecast, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(forecast, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(forecast, "CGROUP_ROOT", tmp_path / "groups")
        return free_bytes(CPU)

    return make


MACHINE = {"meminfo": "MemTotal: 16000 kB\nMemAvailable:    9000 kB\n"}
STAT = "anon 5\ninactive_file 1000\ntotal_inactive_file 2000\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MACHINE, 9_216_000),
        ({**MACHINE, "cgroup": "0::/\n", "groups/memory.max": "max\n"}, 9_216_000),
        (
            {
                **MACHINE,
                "cgroup": "0::/a/b\n",
                "groups/a/b/memory.max": "max\n",
                "groups/a/memory.max": "500000\n",
                "groups/a/memory.current": "200000\n",
                "groups/a/memory.stat": STAT,
            },
            301_000,
        ),
        (
            {
                "cgroup": "4:cpu,memory:/docker/x\n0::/\n",
                "groups/memory/memory.limit_in_bytes": "500000\n",
                "groups/memory/memory.usage_in_bytes": "200000\n",
                "groups/memory/memory.stat": STAT,
            },
            302_000,
        ),
        (
            {
                **MACHINE,
                "cgroup": "0::/\n",
                "groups/memory.max": "5000\n",
                "groups/memory.current": "7000\n",
                "groups/memory.stat": STAT,
            },
            0,
        ),
    ],
    ids=["no Linux", "no group", "no limit", "a group above", "a container", "nothing left"],
)
def test_free_memory_is_the_least_of_machine_and_groups(system, files, free):
    assert system(files) == free


def test_time_grows_with_steps_tokens_and_parameters(monkeypatch):
    monkeypatch.setattr(forecast, "_operations_a_second", lambda: 1e11)
    small = training_seconds(PRESETS["small"], 4, 300)
    # 0.06 s a step were measured on two cores of about this rate.
    assert 300 * 0.03 < small < 300 * 0.3
    assert training_seconds(PRESETS["small"], 8, 300) == pytest.approx(2 * small)
    assert training_seconds(PRESETS["medium"], 4, 300) > 5 * small
    monkeypatch.undo()
    assert 1e8 < forecast._operations_a_second() < 1e15
