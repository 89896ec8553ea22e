"""The trainer: learning, exact resumption after any crash, and reports of divergence."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sigmoid_attention.nn import DecoderLM, ModelConfig
from sigmoid_attention.training.checkpoint import (
    CURRENT,
    PREVIOUS,
    load_checkpoint,
    save_checkpoint,
)
from sigmoid_attention.training.signals import Interrupted, interruptible
from sigmoid_attention.training.tasks import Copying
from sigmoid_attention.training.trainer import Diverged, train
from tests.support.training.runs import digest, tiny_config, tiny_model, tiny_text

ROOT = Path(__file__).parents[2]
# The first checkpoint takes three renames (records, temporary file, new name), the second four:
# it also moves the first aside.
RENAMES = 3 + 4


def trained(folder=None, *, model=None, config=None, **settings):
    model = tiny_model() if model is None else model
    config = tiny_config() if config is None else config
    result = train(model, tiny_text(), config, out=folder, progress=False, **settings)
    return model, result


def test_the_loss_falls_on_a_batch_that_repeats():
    class Same:
        def batch(self, step):
            return Copying(8, 4, vocab_size=9, seed=0).batch(0)

        def describe(self):
            return {}

    model = tiny_model(dropout_p=0.0)
    result = train(model, Same(), tiny_config(steps=30, lr=1e-2), progress=False)
    assert result.steps == len(result.losses) == 30
    assert result.losses[-1] < 0.5 * result.losses[0]


def test_a_run_is_a_function_of_its_seed():
    (a, first), (b, second) = trained(), trained()
    assert digest(a) == digest(b) and first.losses == second.losses
    other, _ = trained(config=tiny_config(seed=6))
    assert digest(other) != digest(a), "dropout must depend on the seed"


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    model = tiny_model()
    torch.manual_seed(11)
    trained(model=model)
    assert torch.equal(torch.rand(3), expected)


def test_checkpoints_do_not_change_the_outcome(tmp_path):
    with_checkpoints, _ = trained(tmp_path)
    without, _ = trained()
    assert digest(with_checkpoints) == digest(without)
    assert sorted(file.name for file in tmp_path.iterdir()) == [PREVIOUS, CURRENT]


@pytest.mark.slow
def test_killed_anywhere_and_resumed_a_run_ends_with_the_same_bits():
    finished = subprocess.run(
        [sys.executable, "-m", "tests.support.training.crash_points", str(RENAMES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    undisturbed, *crashes = (json.loads(line) for line in finished.stdout.splitlines())
    assert not undisturbed["crashed"] and len(crashes) == 4 + RENAMES
    for crash in crashes:
        assert crash["crashed"], crash["point"]
        for field in ("digest", "losses", "records"):
            assert crash[field] == undisturbed[field], (crash["point"], field)
    # The last checkpoint before the crash is what was resumed, not the beginning.
    resumed_from = {crash["point"]: crash["first"] for crash in crashes}
    assert [resumed_from[f"after step {step}"] for step in range(1, 5)] == [0, 0, 2, 2]
    assert [resumed_from[f"before rename {n}"] for n in range(1, 8)] == [0, 0, 0, 2, 2, 2, 2]


def test_a_model_can_be_built_from_its_checkpoint_alone(tmp_path):
    model, _ = trained(tmp_path)
    checkpoint = load_checkpoint(tmp_path / CURRENT)
    again = DecoderLM(ModelConfig.from_dict(checkpoint.config["model"]))
    checkpoint.restore_model(again)
    assert digest(again) == digest(model)


def test_a_finished_run_resumes_to_nothing_left_to_do(tmp_path):
    model, first = trained(tmp_path)
    fresh, again = trained(tmp_path, model=tiny_model(seed=9), resume=True)
    assert again.resumed_from == again.steps == 5 and again.losses == first.losses
    assert digest(fresh) == digest(model)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    _, result = trained(tmp_path / "new", resume=True)
    assert result.resumed_from == 0


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    trained(tmp_path)
    content = (tmp_path / CURRENT).read_bytes()
    with pytest.raises(ValueError, match="out already holds a run"):
        trained(tmp_path)
    assert (tmp_path / CURRENT).read_bytes() == content


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": tiny_config(lr=1e-3)}, r"train\.lr is 0\.003 there and 0\.001 here"),
        ({"model": "wider"}, r"model\.dim is 32 there and 48 here"),
    ],
    ids=["lr", "dim"],
)
def test_another_configuration_is_refused_by_the_field_that_differs(tmp_path, change, named):
    trained(tmp_path)
    content = (tmp_path / CURRENT).read_bytes()
    if change.get("model"):
        change = {"model": tiny_model(dim=48)}
    with pytest.raises(ValueError, match=named):
        trained(tmp_path, resume=True, **change)
    assert (tmp_path / CURRENT).read_bytes() == content


def test_other_text_is_another_configuration(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match=r"data\.seed is 3 there and 4 here"):
        train(
            tiny_model(),
            tiny_text(seed=4),
            tiny_config(),
            out=tmp_path,
            resume=True,
            progress=False,
        )


def test_how_often_to_save_may_change_on_resume(tmp_path):
    whole, _ = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, on_step=_interrupt_after(3))
    resumed, result = trained(tmp_path, config=tiny_config(checkpoint_every=1), resume=True)
    assert result.resumed_from == 2 and digest(resumed) == digest(whole)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("step", [2, 3], ids=["where a checkpoint is due", "between two"])
def test_a_request_to_end_keeps_the_current_step(tmp_path, name, step):
    whole, _ = trained()

    def ask(done, _loss):
        if done == step:
            signal.raise_signal(getattr(signal, name))

    with interruptible(), pytest.raises(Interrupted) as caught:
        trained(tmp_path, on_step=ask)
    kept = f"step {step} of 5 is kept in {tmp_path / CURRENT}"
    assert caught.value.code == 128 + getattr(signal, name) and caught.value.__notes__ == [kept]
    resumed, result = trained(tmp_path, resume=True)
    assert result.resumed_from == step and digest(resumed) == digest(whole)


def test_a_request_while_a_checkpoint_is_written_waits_for_it(tmp_path, monkeypatch):
    def asked(*arguments, **named):
        signal.raise_signal(signal.SIGINT)
        save_checkpoint(*arguments, **named)

    monkeypatch.setattr("sigmoid_attention.training.trainer.save_checkpoint", asked)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    assert load_checkpoint(tmp_path / CURRENT).step == 2


def test_the_second_request_ends_at_once(tmp_path):
    def ask(done, _loss):
        if done == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("this is not reached")

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, on_step=ask)
    assert load_checkpoint(tmp_path / CURRENT).step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_folder_an_interrupt_is_not_delayed():
    seen = []

    def ask(done, _loss):
        seen.append(done)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(on_step=ask)
    assert seen == [1]


def test_measurements_at_a_checkpoint_precede_it(tmp_path):
    """Else a kill between the two would lose the measurement: nothing would do it again."""
    saved = []
    trained(tmp_path, on_step=lambda done, _: saved.append((tmp_path / CURRENT).exists()))
    assert saved == [False, False, True, True, True]


def test_a_folder_that_was_removed_does_not_come_back_without_its_files(tmp_path):
    out = tmp_path / "run"

    def remove(done, _loss):
        if done == 1:
            shutil.rmtree(out)

    with pytest.raises(OSError, match="run was removed during the training; nothing was written"):
        trained(out, on_step=remove)
    assert not out.exists()


def _interrupt_after(step):
    def on_step(done, _loss):
        if done == step:
            raise KeyboardInterrupt

    return on_step


class Poison(nn.Module):
    """Wraps a layer and spoils what it gives, or its gradient, from one call on."""

    def __init__(self, layer, call, *, gradient=False):
        super().__init__()
        self.layer, self.call, self.calls, self.gradient = layer, call, 0, gradient

    def forward(self, x):
        self.calls += 1
        out = self.layer(x)
        if self.calls <= self.call:
            return out
        if self.gradient:
            out.register_hook(lambda gradient: gradient * float("inf"))
            return out
        return out * float("nan")


@pytest.mark.parametrize(
    ("gradient", "where"),
    [
        (False, r"the output of blocks\.1\.feed_forward$"),
        (True, r"the gradient at the output of blocks\.1\.feed_forward$"),
    ],
    ids=["forward", "backward"],
)
def test_divergence_names_step_and_layer_and_keeps_the_checkpoint(tmp_path, gradient, where):
    model = tiny_model()
    block = model.blocks[1]
    block.feed_forward = Poison(block.feed_forward, call=3, gradient=gradient)
    with pytest.raises(Diverged, match=f"diverged at step 3 .*{where}") as caught:
        trained(tmp_path, model=model)
    assert caught.value.step == 3
    resumed = tiny_model()
    resumed.blocks[1].feed_forward = Poison(resumed.blocks[1].feed_forward, call=99)
    _, result = trained(tmp_path, model=resumed, resume=True)
    assert result.resumed_from == 2, "the checkpoint from before the divergence is still good"


def test_a_parameter_that_broke_is_not_saved(tmp_path):
    model = tiny_model()

    def break_it(done, _loss):
        if done == 3:
            with torch.no_grad():
                model.blocks[0].unused[0] = float("nan")

    # Nothing reads it, so that neither a loss nor a gradient shows it.
    model.blocks[0].unused = nn.Parameter(torch.zeros(1))
    with pytest.raises(Diverged, match=r"step 3 .*the parameter blocks\.0\.unused"):
        trained(tmp_path, model=model, on_step=break_it)


def test_bf16_trains_and_keeps_float32_parameters():
    model, result = trained(config=tiny_config(bf16=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    _, exact = trained()
    assert result.losses == pytest.approx(exact.losses, rel=0.02)
    assert result.losses != exact.losses


@pytest.mark.parametrize(("device", "says"), [("gpu", "that torch knows"), ("cuda", "no GPU")])
def test_a_device_that_is_not_there_is_named(device, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=says):
        trained(config=tiny_config(device=device))
