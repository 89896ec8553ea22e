"""A student starts equal to its parent, ends as a plain sigmoid model, and is saved as one."""

import pytest
import torch
from transformers import AutoModel

from sigmoid_attention import RowLSE
from sigmoid_attention.integrations.conversion import ANNEALED, FORMS, Student
from sigmoid_attention.integrations.conversion.student import use_bias
from sigmoid_attention.integrations.transformers import PerHead, convert
from sigmoid_attention.nn import StateBias
from tests.support.conversion.models import KINDS, answer, bert, ids, llama


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_its_parent(kind, form):
    parent, tokens = KINDS[kind](), ids()
    before = answer(parent, tokens)
    errors = []
    for gain in (1.0, 10.0, 1000.0):
        student = Student(KINDS[kind](), form=form, gain=gain)
        errors.append(float((answer(student.model, tokens) - before).abs().max() / before.std()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


@pytest.mark.parametrize("gain", [1.0, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_divided_by_its_mass_it_is_its_parent(kind, gain):
    parent, tokens = KINDS[kind](), ids()
    student = Student(KINDS[kind](), form="linear", gain=gain, annealed="mass")
    torch.testing.assert_close(
        answer(student.model, tokens), answer(parent, tokens), rtol=1e-3, atol=1e-4
    )


def test_the_bias_moves_before_the_power_of_the_mass():
    student = Student(llama(), form="linear", gain=1.5, annealed="mass")
    module = next(iter(student.modules.values()))
    seen = []
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        student.set_t(t)
        seen.append((module.sigmoid_bias.t, module.sigmoid_operator.exponent))
    assert seen == [(0, 1), (0.5, 1), (1, 1), (1, 0.5), (1, 0)]


def test_a_gain_of_one_is_the_row_lse():
    student, other = Student(llama(), form="constant", gain=1.0), llama()
    convert(other, bias=RowLSE())
    torch.testing.assert_close(answer(student.model, ids()), answer(other, ids()))


def test_use_bias_replaces_the_bias_of_every_module():
    first = convert(llama(), bias=RowLSE())
    second = convert(llama(), bias=-3.0)
    assert not torch.allclose(answer(first, ids()), answer(second, ids()))
    use_bias(first, PerHead(-3.0))
    torch.testing.assert_close(answer(first, ids()), answer(second, ids()))


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_brings_the_end_nearer_and_leaves_the_start(kind):
    tokens = ids()
    before = answer(KINDS[kind](), tokens)
    student = Student(KINDS[kind](), form="linear", gain=2.0)

    def error():
        return float((answer(student.model, tokens) - before).square().mean())

    start = error()
    student.set_t(1.0)
    uncalibrated = error()
    student.calibrate(student.modules.values(), lambda: student.model(tokens))
    assert error() < uncalibrated / 2
    student.set_t(0.0)
    assert error() == pytest.approx(start, rel=1e-4)


def test_only_the_modules_that_are_named_move():
    student = Student(llama(), form="linear", gain=2.0)
    first, second = student.modules.values()
    student.calibrate([first], lambda: student.model(ids()))
    student.set_t(1.0, [first])
    assert first.sigmoid_bias.final.weight.abs().max() > 0 and first.sigmoid_bias.t == 1
    assert second.sigmoid_bias.final.weight.abs().max() == 0 and second.sigmoid_bias.t == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("annealed", ANNEALED)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loaded_as_a_plain_sigmoid_model(kind, annealed, form, tmp_path):
    tokens = ids()
    student = Student(KINDS[kind](), form=form, gain=1.5, annealed=annealed)
    student.calibrate(student.modules.values(), lambda: student.model(tokens))
    student.set_t(1.0)
    moving = answer(student.model, tokens)
    model = student.finish()
    assert answer(model, tokens).equal(moving)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sigmoid"
    assert answer(loaded, tokens).equal(moving)
    names = {name for name in loaded.state_dict() if "sigmoid" in name}
    ends = ("sigmoid_bias",) if form == "constant" else ("offset", "slope", "weight")
    assert names and all(name.endswith(ends) for name in names)


def test_in_bf16_the_biases_stay_in_fp32(tmp_path):
    Student(llama(), form="linear", gain=1.5).finish().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    bias = loaded.layers[0].self_attn.sigmoid_bias
    assert isinstance(bias, StateBias) and bias.weight.dtype == torch.float32
    assert loaded.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16


def test_with_a_cache_it_writes_what_it_writes_without():
    student = Student(llama(), form="linear", gain=1.5)
    student.calibrate(student.modules.values(), lambda: student.model(ids()))
    model, tokens = student.finish(), ids(batch=1, length=5)
    written = model.generate(tokens, max_new_tokens=9, do_sample=False, pad_token_id=0)
    for _ in range(9):
        following = answer(model, tokens)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
    assert written.equal(tokens)


def test_padding_changes_nothing():
    student = Student(bert(), form="linear", gain=1.5)
    student.calibrate(student.modules.values(), lambda: student.model(ids()))
    model, tokens = student.finish(), ids(length=12)
    padded = torch.nn.functional.pad(tokens, (0, 5))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (0, 5))
    with torch.no_grad():
        out = model(padded, attention_mask=mask)[0][:, :12]
    torch.testing.assert_close(out, answer(model, tokens), rtol=1e-4, atol=1e-4)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be one of linear, constant, got 'row'"):
        Student(llama(), form="row", gain=1.0)


def test_an_unknown_way_of_annealing_is_refused():
    with pytest.raises(ValueError, match="annealed must be one of bias, mass, got 'gain'"):
        Student(llama(), form="linear", gain=1.0, annealed="gain")


def test_a_student_divided_by_its_mass_refuses_packed_sequences():
    model = Student(llama(), form="linear", gain=1.0, annealed="mass").model
    ends = torch.tensor([0, 3, 7], dtype=torch.int32)
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids(batch=1, length=7), cu_seq_lens_q=ends, cu_seq_lens_k=ends)


def test_an_unreached_architecture_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="they would go on with a softmax"):
        Student(model, form="linear", gain=1.0)
