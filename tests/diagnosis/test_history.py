"""Spikes and a mass that is too large at the start are found in records of a training."""

import pyarrow as pa
import pytest

from sigmoid_attention.diagnosis.history import history
from sigmoid_attention.nn.models import DecoderLM, ModelConfig
from sigmoid_attention.training.recorder import SCHEMA, Recorder
from sigmoid_attention.training.tables import parquet_bytes
from sigmoid_attention.training.tasks import Copying
from sigmoid_attention.training.trainer import TrainConfig, train


def records(folder, spike=None, mass=1.0):
    rows = []
    for step in range(30):
        large = 40.0 if step == spike else 1.0 + 0.1 * (step % 3)
        rows.append((step, -1, "", "gradient_norm", "value", large))
        for layer in (0, 1):
            gradient = large if layer == 1 else 1.0
            rows.append((step, layer, f"blocks.{layer}.x", "gradient", "norm", gradient))
            name = f"blocks.{layer}.attention"
            rows.append((step, layer, name, "attention_weights", "row_mass_mean", mass))
    columns = dict(zip(SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True))
    part = folder / "steps-000000000-000000029.parquet"
    part.write_bytes(parquet_bytes(pa.table(columns, schema=SCHEMA), part.name))
    return folder


def test_a_quiet_training_has_no_finding(tmp_path):
    assert list(history(records(tmp_path))) == []


def test_a_spike_is_found_with_its_step_and_layer(tmp_path):
    (finding,) = history(records(tmp_path, spike=17))
    assert (finding.fault, finding.where) == ("spike", "step 17")
    assert "36 times its median" in finding.said and "largest in layer 1" in finding.said


def test_a_spike_in_the_first_steps_is_no_finding(tmp_path):
    assert list(history(records(tmp_path, spike=3))) == []


def test_a_mass_that_is_too_large_at_the_start_is_found(tmp_path):
    (finding,) = history(records(tmp_path, mass=9.0))
    assert (finding.fault, finding.where) == ("mass at the start", "step 0, layers 0, 1")
    assert "the sum 9.0" in finding.said


@pytest.mark.parametrize("bias", [0.0, "neg_log_length"])
def test_a_training_with_a_bias_of_zero_is_found(tmp_path, bias):
    sizes = {"vocab_size": 31, "dim": 32, "layers": 2, "num_heads": 2, "max_seq_len": 48}
    model = DecoderLM(ModelConfig(**sizes, position="rope", bias=bias))
    data = Copying(24, 2, vocab_size=31, seed=0)
    recorder = Recorder(tmp_path / "records")
    train(model, data, TrainConfig(steps=3), recorder=recorder, progress=False)
    assert [x.fault for x in history(recorder.path)] == ["mass at the start"] * (bias == 0)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no records"):
        list(history(tmp_path))
