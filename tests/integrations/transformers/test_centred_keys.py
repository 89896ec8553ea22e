"""`convert(centred_keys=True)`: the checks of the architectures, generation and refusals."""

import copy
import inspect
import json
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoConfig, DynamicCache, LlamaForCausalLM, Trainer

from sigmoid_attention import CentredKeys, LearnedCentring, NegLogLength, RowLSE
from sigmoid_attention.integrations.transformers import (
    PerHead,
    attention_modules,
    convert,
    replace_bias,
    set_bias,
)
from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES
from tools.architecture_table import COLUMNS

LLAMA = ARCHITECTURES["Llama"]
FAST = ("GPT-2", "Llama", "Mistral", "BERT", "T5")
# Each compiles the whole model.
SLOW = [(name, check) for name in ("GPT-2", "Mistral", "BERT", "T5")
        for check in (checks.compiled, checks.linear_bias)]  # fmt: skip
CASES = [
    pytest.param(
        name,
        check,
        id=f"{name}-{head.replace(' ', '-')}",
        marks=[] if name in FAST and (name, check) not in SLOW else [pytest.mark.slow],
    )
    for head, check, fits in COLUMNS
    if check is not checks.reached
    for name, architecture in ARCHITECTURES.items()
    if fits(architecture)
]


@pytest.mark.product
@pytest.mark.parametrize(("name", "check"), CASES)
def test_architecture(name, check, tmp_path):
    folder = {"folder": tmp_path} if "folder" in inspect.signature(check).parameters else {}
    check(ARCHITECTURES[name], **folder, centred_keys=True)


def centred(name: str):
    return checks.converted(ARCHITECTURES[name], centred_keys=True)


def test_a_strength_of_zero_is_the_model_without_centring():
    model, batch = centred("Llama"), LLAMA.batch()
    plain = convert(LLAMA.build(), bias=PerHead(0.0))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(model(**batch).logits, plain(**batch).logits, atol=1e-2)
    for module in attention_modules(model).values():
        module.sigmoid_bias_centring.data.zero_()
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits, **checks.TOLERANCE)


def test_a_new_model_starts_at_one_from_a_config_and_from_a_softmax_checkpoint(tmp_path):
    parent = LLAMA.build()
    parent.save_pretrained(tmp_path)
    config = convert(AutoConfig.from_pretrained(tmp_path), centred_keys=True)
    for model in (
        LlamaForCausalLM(config),
        LlamaForCausalLM.from_pretrained(tmp_path, config=config),
        convert(parent, centred_keys=True),
    ):
        modules = attention_modules(model).values()
        assert all(module.sigmoid_bias_centring.tolist() == [1.0] * 4 for module in modules)
        assert all(module.sigmoid_bias_centring.dtype == torch.float32 for module in modules)
        assert all(x.sigmoid_bias_centring.dtype == torch.float32 for x in attention_modules(
            copy.deepcopy(model).bfloat16()).values())  # fmt: skip


def test_the_trainer_of_transformers_decays_no_strength():
    names = Trainer.get_decay_parameter_names(Mock(), centred("Llama"))
    assert names and not any("sigmoid" in name for name in names)


def test_only_a_centred_config_has_the_new_format():
    """An earlier version refuses format 3, and would ignore a new key of format 2."""
    for centred_keys, number in ((False, 2), (True, 3)):
        config = convert(LLAMA.build(), centred_keys=centred_keys).config
        entry = json.loads(config.to_json_string())["sigmoid_attention"]
        assert entry["format"] == number and "centred_keys" not in entry


SEARCHES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "assisted": {"prompt_lookup_num_tokens": 3},
    "static": {"cache_implementation": "static", "disable_compile": True},
}
# transformers crops no cache of a window that is full.
GENERATED = [
    (n, s)
    for n in ("Llama", "Mistral", "T5")
    for s in SEARCHES
    if (n, s) != ("Mistral", "assisted")
]


@pytest.mark.parametrize(("name", "search"), GENERATED, ids=lambda value: value)
def test_generation_with_a_cache_writes_what_it_writes_without(name, search):
    """Beams reorder the cache and assistants crop it; the first prompt has padding to the left."""
    search = SEARCHES[search]
    model = centred(name)
    tokens = ARCHITECTURES[name].batch()["input_ids"]
    mask = torch.ones_like(tokens)
    if "prompt_lookup_num_tokens" in search:
        # One prompt, with repetitions for the lookup.
        tokens = torch.cat([tokens[:1], tokens[:1, :5]], dim=1)
        mask = torch.ones_like(tokens)
    elif name != "T5":
        mask[0, :3] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    settings |= {"pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(
        tokens, **settings | {"use_cache": False, "num_beams": search.get("num_beams", 1)}
    )
    assert torch.equal(model.generate(tokens, **settings, **search), expected)


def test_a_cropped_cache_has_the_means_of_the_keys_that_are_left():
    model = centred("Llama")
    tokens = LLAMA.batch()["input_ids"]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, **checks.with_cache(model, cache), use_cache=True)
        cache.crop(-6)
        rest = model(tokens[:, 5:], **checks.with_cache(model, cache), use_cache=True).logits
        expected = model(tokens).logits[:, 5:]
    torch.testing.assert_close(rest, expected, **checks.TOLERANCE)


def test_a_bias_is_replaced_and_the_strengths_stay():
    model = centred("Llama")
    before = [module.sigmoid_bias_centring for module in attention_modules(model).values()]
    set_bias(model, -3.0)
    for module, strength in zip(attention_modules(model).values(), before, strict=True):
        replace_bias(module, PerHead(NegLogLength(16)))
        assert module.sigmoid_bias_centring is strength
    assert model.config.sigmoid_attention["format"] == 3
    assert model(**LLAMA.batch()).logits.isfinite().all()


@pytest.mark.parametrize("bias", [CentredKeys(-2.0), LearnedCentring(-2.0, 4)], ids=["", "learned"])
def test_a_policy_that_centres_is_refused_in_favour_of_the_option(bias):
    model = LLAMA.build()
    for call in (lambda: convert(model, bias=bias), lambda: set_bias(centred("Llama"), bias)):
        with pytest.raises(TypeError, match=r"^bias must be .* got \w+; .*centred_keys=True"):
            call()
    assert not attention_modules(model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"centred_keys": "yes"}, TypeError, "^centred_keys must be True or False, got the string"),
        ({"centred_keys": 2}, ValueError, "^centred_keys must be True or False, got 2"),
        (
            {"centred_keys": True, "bias": RowLSE()},
            ValueError,
            "bias must not remove the common part of a row itself, got RowLSE",
        ),
    ],
    ids=["word", "number", "row-lse"],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_changed(options, error, message):
    model = LLAMA.build()
    before = list(model.state_dict())
    with pytest.raises(error, match=message):
        convert(model, **options)
    assert list(model.state_dict()) == before and not attention_modules(model)


def test_a_centred_module_takes_no_bias_that_centres_too():
    model = centred("Llama")
    module = next(iter(attention_modules(model).values()))
    bias = module.sigmoid_bias
    for wrong in (RowLSE(), CentredKeys(-2.0), LearnedCentring(-2.0, 4)):
        with pytest.raises(ValueError, match="bias must not remove the common part"):
            replace_bias(module, wrong)
    with pytest.raises(ValueError, match="bias must not remove the common part"):
        set_bias(model, RowLSE())
    assert module.sigmoid_bias is bias


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_model_is_refused_by_a_sentence():
    plain = LLAMA.build()
    model = torch.ao.quantization.quantize_dynamic(plain, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"^centred_keys puts .* quantised after its conversion"):
        convert(model, bias=-2.0, centred_keys=True)
    assert not attention_modules(model)
