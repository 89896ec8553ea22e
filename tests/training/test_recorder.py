"""The recorder: correct numbers, no influence on the model, no loss and no duplicates."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sigmoid_attention.training import recorder as recorder_module
from sigmoid_attention.training.optimizer import schedule
from sigmoid_attention.training.recorder import SCHEMA, Recorder, read_records
from sigmoid_attention.training.trainer import Diverged, train
from tests.support.training.runs import digest, tiny_config, tiny_model, tiny_text

SIZES = {"norm", "rms", "max_abs"}


def recorded(folder, *, every=1, model=None, config=None, **settings):
    model = tiny_model() if model is None else model
    config = tiny_config() if config is None else config
    recorder = Recorder(folder / "records", every)
    result = train(model, tiny_text(), config, recorder=recorder, progress=False, **settings)
    return model, result, recorder


def values(folder, **conditions):
    rows = read_records(folder / "records").to_pylist()
    return [row["value"] for row in rows if all(row[k] == v for k, v in conditions.items())]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_recording_changes_no_bit(tmp_path, every, bf16):
    config = tiny_config(bf16=bf16)
    watched, result, _ = recorded(tmp_path, every=every, config=config)
    alone = tiny_model()
    unwatched = train(alone, tiny_text(), config, progress=False)
    assert digest(watched) == digest(alone) and result.losses == unwatched.losses


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_every_quantity_of_every_layer_is_there(tmp_path, activation):
    model, _, _ = recorded(tmp_path, every=2, model=tiny_model(activation=activation))
    table = read_records(tmp_path / "records")
    assert table.schema == SCHEMA
    rows = table.to_pylist()
    assert {row["step"] for row in rows} == {0, 2, 4}
    actual = {
        (r["module"], r["layer"], r["quantity"], r["statistic"]) for r in rows if not r["step"]
    }
    expected = {("", -1, name, "value") for name in ("loss", "gradient_norm", "learning_rate")}
    for i in range(2):
        of_weights = SIZES | {"frobenius", "row_mass_mean", "row_mass_max"}
        for module, quantity, statistics in [
            (f"blocks.{i}.attention", "attention_weights", of_weights),
            (f"blocks.{i}.attention", "attention_output", SIZES),
            (f"blocks.{i}.feed_forward", "mlp_output", SIZES),
            (f"blocks.{i}", "residual_stream", SIZES),
        ]:
            expected |= {(module, i, quantity, statistic) for statistic in statistics}
    for name, _ in model.named_parameters():
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        for quantity in ("gradient", "parameter", "adam_m", "adam_v"):
            expected |= {(name, layer, quantity, statistic) for statistic in SIZES}
    assert actual == expected
    assert len(rows) == 3 * len(expected), "each once a step"


def test_the_numbers_are_those_of_the_tensors(tmp_path):
    model, _, _ = recorded(tmp_path, config=tiny_config(steps=1))
    weight = model.blocks[1].feed_forward.down.weight.detach()
    conditions = {"module": "blocks.1.feed_forward.down.weight", "quantity": "parameter"}
    assert values(tmp_path, **conditions, statistic="norm") == pytest.approx([weight.norm().item()])
    assert values(tmp_path, **conditions, statistic="max_abs") == [weight.abs().max().item()]
    rms = weight.square().mean().sqrt().item()
    assert values(tmp_path, **conditions, statistic="rms") == pytest.approx([rms])


def test_attention_numbers_at_initialisation_are_those_of_the_layer(tmp_path):
    model = tiny_model(dropout_p=0.0)
    seen = []
    layer = model.blocks[0].attention
    layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].detach(), out)))
    untouched = tiny_model(dropout_p=0.0).blocks[0].attention
    recorded(tmp_path, model=model, config=tiny_config(steps=1))
    x, out = seen[0]
    weights_BHNN = untouched.weights(x)
    conditions = {"module": "blocks.0.attention", "step": 0}
    frobenius = weights_BHNN.square().sum((-1, -2)).sqrt().mean().item()
    assert values(tmp_path, **conditions, statistic="frobenius") == pytest.approx([frobenius])
    mass = weights_BHNN.sum(-1)
    assert values(tmp_path, **conditions, statistic="row_mass_max") == pytest.approx(
        [mass.max().item()]
    )
    norm = out.detach().norm().item()
    outputs = values(tmp_path, **conditions, quantity="attention_output", statistic="norm")
    assert outputs == pytest.approx([norm])


def test_a_softmax_row_has_mass_one(tmp_path):
    recorded(tmp_path, model=tiny_model(activation="softmax"))
    masses = values(tmp_path, statistic="row_mass_max") + values(
        tmp_path, statistic="row_mass_mean"
    )
    assert masses == pytest.approx([1.0] * len(masses)) and len(masses) == 2 * 2 * 5


def test_scalars_of_the_run(tmp_path):
    _, result, _ = recorded(tmp_path)
    assert values(tmp_path, quantity="loss") == result.losses
    config = tiny_config()
    rates = [config.lr * schedule(step, config) for step in range(5)]
    assert values(tmp_path, quantity="learning_rate") == rates
    total = sum(
        value**2 for value in values(tmp_path, quantity="gradient", statistic="norm", step=3)
    )
    assert values(tmp_path, quantity="gradient_norm", step=3) == pytest.approx([total**0.5])


def test_parts_are_cut_by_size_and_at_checkpoints(tmp_path, monkeypatch):
    _, _, recorder = recorded(tmp_path, out=tmp_path / "run")
    names = [part.name for part in sorted(recorder.path.iterdir())]
    assert names == [
        f"steps-{first:09d}-{last:09d}.parquet" for first, last in [(0, 1), (2, 3), (4, 4)]
    ]
    monkeypatch.setattr(recorder_module, "ROWS_IN_A_PART", 1)
    _, _, small = recorded(tmp_path / "small")
    assert len(list(small.path.iterdir())) == 5
    assert read_records(small.path).equals(read_records(recorder.path))


def test_a_resumed_run_records_nothing_twice(tmp_path):
    def interrupt(done, _loss):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path, out=tmp_path / "run", on_step=interrupt)
    _, result, recorder = recorded(tmp_path, out=tmp_path / "run", resume=True)
    assert result.resumed_from == 2
    _, _, whole = recorded(tmp_path / "whole")
    assert read_records(recorder.path).equals(read_records(whole.path))


def test_a_damaged_part_is_named_and_recorded_again(tmp_path, capsys):
    _, _, recorder = recorded(tmp_path, out=tmp_path / "run")
    whole = read_records(recorder.path)
    part = recorder.path / "steps-000000002-000000003.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(ValueError, match=r"steps-000000002-000000003\.parquet is damaged"):
        read_records(recorder.path)
    _, result, _ = recorded(tmp_path, out=tmp_path / "run", resume=True)
    message = capsys.readouterr().err
    assert f"{part} is damaged" in message and "trained again from its beginning" in message
    assert result.resumed_from == 0 and read_records(recorder.path).equals(whole)


def test_a_missing_part_is_noticed_where_all_are_wanted(tmp_path, capsys):
    _, _, recorder = recorded(tmp_path, out=tmp_path / "run")
    whole = read_records(recorder.path)
    (recorder.path / "steps-000000002-000000003.parquet").unlink()
    again = Recorder(recorder.path, whole=True)
    train(
        tiny_model(), tiny_text(), tiny_config(),
        out=tmp_path / "run", resume=True, recorder=again, progress=False,
    )  # fmt: skip
    assert "holds no records of step 2;" in capsys.readouterr().err
    assert read_records(recorder.path).equals(whole)


def test_a_file_with_another_name_is_named(tmp_path):
    (tmp_path / "steps-x.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"steps-x\.parquet is damaged"):
        Recorder(tmp_path).fault(first=3)


def test_a_diverging_step_is_recorded(tmp_path):
    model = tiny_model()

    def spoil(done, _loss):
        # No checkpoint is due, which would find the parameter first.
        if done == 3:
            with torch.no_grad():
                model.blocks[1].attention.value.weight[0, 0] = float("inf")

    with pytest.raises(Diverged, match=r"step 3 .*blocks\.1\.attention\.value"):
        recorded(tmp_path, model=model, on_step=spoil)
    conditions = {"quantity": "attention_output", "statistic": "max_abs", "layer": 1}
    before, *_, last = values(tmp_path, **conditions)
    assert before < 100 and not last < float("inf")


def test_another_runs_records_are_not_mixed_in(tmp_path):
    _, _, recorder = recorded(tmp_path)
    parts = {part: part.read_bytes() for part in recorder.path.iterdir()}
    with pytest.raises(ValueError, match="already holds records"):
        recorded(tmp_path)
    assert {part: part.read_bytes() for part in recorder.path.iterdir()} == parts


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Recorder(tmp_path, every=0)
    with pytest.raises(ValueError, match="there are no records in"):
        read_records(tmp_path)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_recomputed_activations_are_recorded_once(tmp_path, reentrant):
    tables = []
    for name in ("plain", "checkpoints"):
        model = tiny_model(dropout_p=0.0)
        for block in model.blocks if name == "checkpoints" else ():
            once_more = partial(checkpoint, block.forward, use_reentrant=reentrant)
            block.forward = lambda x, run=once_more, **_: run(x)
        recorded(tmp_path / name, model=model)
        rows = read_records(tmp_path / name / "records").to_pylist()
        tables.append([(row["step"], row["module"], row["quantity"], row["value"]) for row in rows])
    assert sorted(tables[0]) == sorted(tables[1])


def test_a_test_between_two_steps_is_not_recorded(tmp_path):
    """As `train` on the command line takes one of held-out text, after a step that is recorded."""
    model, text = tiny_model(), tiny_text()

    def look(_done, _loss):
        model.eval()(text.batch(99)[0])
        model.train()

    recorded(tmp_path / "tested", model=model, on_step=look)
    recorded(tmp_path / "alone")
    first, second = (read_records(tmp_path / name / "records") for name in ("tested", "alone"))
    assert first.equals(second)
