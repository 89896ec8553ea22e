"""Generation: equal with and without cache and padding, and sampling within the nucleus."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sigmoid_attention.nn import PRESETS, DecoderLM, ModelConfig, generate

PARAMETER = torch.nn.Parameter(torch.ones(1))
CONFIG = ModelConfig.from_dict({**PRESETS["tiny"].to_dict(), "vocab_size": 13})


@pytest.fixture(
    params=["rope", "alibi", "learned", "cape", "rope-softmax", "alibi-softmax"], scope="module"
)
def model(request):
    torch.manual_seed(0)
    position, _, arm = request.param.partition("-")
    changes = {"position": position, "activation": arm or "sigmoid"}
    return DecoderLM(ModelConfig.from_dict({**CONFIG.to_dict(), **changes}))


def uncached(model, tokens, new):
    model.eval()
    for _ in range(new):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.mark.parametrize("B, N, new", [(1, 1, 9), (3, 7, 12)])
def test_greedy_with_a_cache_is_greedy_without(model, B, N, new):
    prompt = torch.randint(13, (B, N))
    expected = uncached(model, prompt, new)
    assert torch.equal(generate(model, prompt, max_new_tokens=new), expected)


OPTIONS = dict(
    position="rope+alibi",
    centred_keys=True,
    state_bias=True,
    gate="element",
    value_residual=True,
    mass_exponent="learned",
)


@pytest.mark.parametrize(
    "options",
    [OPTIONS, {**OPTIONS, "window_size": 4}, {**OPTIONS, "reach": "trained", "max_seq_len": 5}],
    ids=["all", "window", "reach"],
)
def test_options_generate_with_a_cache_as_without(options):
    sizes = dict(vocab_size=17, dim=16, layers=2, num_heads=2, max_seq_len=16)
    model = DecoderLM(ModelConfig(**{**sizes, **options})).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    mask = torch.arange(6) >= torch.tensor([[0], [4]])
    prompt = torch.randint(17, (2, 6))
    generated = generate(model, prompt, max_new_tokens=8, attn_mask=mask)
    for row, start in enumerate((0, 4)):
        tokens = prompt[row : row + 1, start:]
        for _ in range(8):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
        assert torch.equal(generated[row, start:], tokens[0])


def test_left_padded_prompts_continue_as_if_alone(model):
    lengths, N = (7, 4, 1), 7
    prompt = torch.randint(13, (3, N))
    mask = torch.arange(N) >= N - torch.tensor(lengths)[:, None]
    together = generate(model, prompt, max_new_tokens=8, attn_mask=mask)
    for row, length in enumerate(lengths):
        alone = generate(model, prompt[row : row + 1, N - length :], max_new_tokens=8)
        assert torch.equal(together[row, N - length :], alone[0])


def test_sampling_is_reproducible_and_keeps_the_prompt(model):
    prompt = torch.randint(13, (2, 3))

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return generate(model, prompt, max_new_tokens=9, temperature=1.0, generator=generator)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(draw(1)[:, :3], prompt)


def test_sampling_follows_the_temperature(model):
    prompt = torch.tensor([[5, 2]]).expand(20_000, -1)
    with torch.no_grad():
        expected = (model.eval()(prompt[:1])[0, -1] / 0.7).softmax(-1)
    drawn = generate(model, prompt, max_new_tokens=1, temperature=0.7)[:, -1]
    frequency = torch.bincount(drawn, minlength=13) / len(drawn)
    torch.testing.assert_close(frequency, expected, atol=0.02, rtol=0)


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(model):
    prompt = torch.tensor([[5, 2]]).expand(5_000, -1)
    with torch.no_grad():
        probability = model.eval()(prompt[:1])[0, -1].softmax(-1)
    nucleus, mass = set(), 0.0
    for token in probability.argsort(descending=True).tolist():
        if mass >= 0.6:
            break
        nucleus.add(token)
        mass += probability[token].item()
    drawn = generate(model, prompt, max_new_tokens=1, temperature=1.0, top_p=0.6)[:, -1]
    assert set(drawn.tolist()) == nucleus and 1 < len(nucleus) < 13


def test_a_tiny_nucleus_is_greedy(model):
    prompt = torch.randint(13, (2, 3))
    drawn = generate(model, prompt, max_new_tokens=6, temperature=1.0, top_p=1e-6)
    assert torch.equal(drawn, generate(model, prompt, max_new_tokens=6))


def test_rows_stop_at_the_stop_token(model):
    prompt = torch.randint(13, (6, 3))
    free = generate(model, prompt, max_new_tokens=12)
    stop = int(free[0, 5])
    stopped = generate(model, prompt, max_new_tokens=12, stop_token=stop)
    longest = 0
    for row in range(6):
        new = free[row, 3:].tolist()
        end = new.index(stop) + 1 if stop in new else len(new)
        longest = max(longest, end)
        expected = new[:end] + [stop] * (stopped.shape[1] - 3 - end)
        assert stopped[row, 3:].tolist() == expected
    assert stopped.shape[1] == 3 + longest


def test_the_mode_of_the_model_is_restored():
    model = DecoderLM(CONFIG).train()
    generate(model, torch.zeros(1, 2, dtype=torch.long), max_new_tokens=1)
    assert model.training


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(prompt=torch.zeros(1, 0, dtype=torch.long)), "prompt must be int64"),
        (dict(prompt=torch.zeros(3, dtype=torch.long)), "prompt must be int64"),
        (dict(prompt=torch.zeros(1, 3)), "prompt must be int64"),
        (dict(prompt=torch.tensor([[1, 13]])), "tokens must be 0 to 12, got 13"),
        (dict(prompt=torch.tensor([[1, -1]])), "tokens must be 0 to 12, got -1"),
        (dict(max_new_tokens=0), "max_new_tokens must be positive, got 0"),
        (dict(temperature=-1.0), "temperature must be 0"),
        (dict(top_p=0.0), "top_p must be above 0"),
        (dict(attn_mask=torch.ones(1, 2)), "attn_mask must be boolean"),
        (dict(attn_mask=torch.tensor([[True, False, True]])), "padding must stand on the"),
        (dict(attn_mask=torch.zeros(1, 3, dtype=torch.bool)), "padding must stand on the"),
        (dict(max_new_tokens=10**400), "max_new_tokens must be positive, got a number of"),
        (dict(temperature=float("inf")), "temperature must be 0 .*, got inf"),
        (dict(temperature=float("nan")), "temperature must be 0 .*, got nan"),
        (dict(temperature=1e-45), "temperature must be 0 .*, got 1e-45"),
        (dict(top_p=1.5), "top_p must be above 0 and at most 1, got 1.5"),
        (dict(top_p=float("nan")), "top_p must be above 0 and at most 1, got nan"),
        (dict(stop_token=13), "stop_token must be a whole number of 0 to 12, or None, got 13"),
        (dict(stop_token=-1), "stop_token must be a whole number of 0 to 12, or None, got -1"),
        (dict(max_new_tokens=30), "learned position table ends at 32 tokens, got a prompt of 3"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_values_are_refused(changes, match):
    model = DecoderLM(ModelConfig.from_dict({**CONFIG.to_dict(), "position": "learned"}))
    arguments = {"prompt": torch.ones(1, 3, dtype=torch.long), "max_new_tokens": 2, **changes}
    with pytest.raises(ValueError, match=match) as error:
        generate(model, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(prompt=np.ones((1, 3), dtype=np.int64)), "prompt must be a tensor of torch"),
        (dict(prompt=[[1, 2, 3]]), "prompt must be a tensor of torch, got"),
        (dict(max_new_tokens=2.5), "max_new_tokens must be a whole number, got 2.5"),
        (dict(max_new_tokens=None), "max_new_tokens must be a whole number, got None"),
        (dict(temperature=PARAMETER), "temperature must be a number, got a Parameter"),
        (dict(temperature="1"), "temperature must be a number, got the string '1'"),
        (dict(top_p=None), "top_p must be a number, got None"),
        (dict(top_p="0.9"), "top_p must be a number, got the string '0.9'"),
        (dict(top_p=PARAMETER), "top_p must be a number, got a Parameter"),
        (dict(stop_token=2.0), "stop_token must be a whole number .*, got 2.0"),
        (dict(stop_token="2"), "stop_token must be a whole number .*, got the string '2'"),
        (dict(generator=0), "generator must be a torch.Generator or None, got 0"),
        (dict(attn_mask=np.ones((1, 3), dtype=bool)), "attn_mask must be a tensor"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_types_are_refused(changes, match):
    model = DecoderLM(ModelConfig.from_dict({**CONFIG.to_dict(), "position": "learned"}))
    arguments = {"prompt": torch.ones(1, 3, dtype=torch.long), "max_new_tokens": 2, **changes}
    with pytest.raises(TypeError, match=match) as error:
        generate(model, **arguments)
    assert "\n" not in str(error.value)


def test_the_lowest_temperature_is_greedy(model):
    prompt = torch.randint(13, (3, 4))
    greedy = generate(model, prompt, max_new_tokens=5)
    coldest = torch.finfo(torch.float32).tiny
    assert generate(model, prompt, max_new_tokens=5, temperature=coldest).equal(greedy)


def test_numbers_of_numpy_are_numbers(model):
    prompt = torch.randint(13, (2, 3))
    numbers = dict(max_new_tokens=4, temperature=0.5, top_p=0.75, stop_token=3)
    drawn = [
        generate(model, prompt, **options, generator=torch.Generator().manual_seed(0))
        for options in (numbers, {name: np.asarray(x)[()] for name, x in numbers.items()})
    ]
    assert drawn[0].equal(drawn[1])


def test_each_module_gets_its_mode_back():
    model = DecoderLM(CONFIG).train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ValueError):
        generate(model, torch.zeros(1, 2, dtype=torch.long), max_new_tokens=0)
    generate(model, torch.zeros(1, 2, dtype=torch.long), max_new_tokens=1)
    assert [module.training for module in model.modules()] == before


def test_nothing_is_written_to_a_model_that_evaluates(monkeypatch):
    model = DecoderLM(CONFIG).eval()
    monkeypatch.setattr(DecoderLM, "train", lambda *_: pytest.fail("a mode was set"))
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    generate(model, torch.zeros(1, 2, dtype=torch.long), max_new_tokens=2)
    assert {name: dict(vars(part)) for name, part in model.named_modules()} == before


def test_threads_that_share_a_model_generate_the_same_as_alone(model):
    model.eval()
    prompts = [torch.randint(13, (1, 2 + n)) for n in range(4)]
    expected = [generate(model, prompt, max_new_tokens=8) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        actual = pool.map(lambda prompt: generate(model, prompt, max_new_tokens=8), prompts)
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def test_logits_of_the_last_tokens_alone(model):
    tokens = torch.randint(13, (2, 7))
    every = model.eval()(tokens)
    for last in (1, 3, 7, 9):
        torch.testing.assert_close(model(tokens, logits_to_keep=last), every[:, -last:])
    with pytest.raises(ValueError, match="logits_to_keep must be positive, got 0"):
        model(tokens, logits_to_keep=0)


@pytest.mark.parametrize("first", [True, False], ids=["prompt", "steps"])
def test_a_cache_may_be_filled_under_autocast_and_read_without(model, first):
    model.eval()
    tokens, cache = torch.randint(13, (1, 6)), model.new_cache(1, 6)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=first):
            model(tokens[:, :4], cache=cache)
        with torch.autocast("cpu", torch.bfloat16, enabled=not first):
            actual = model(tokens[:, 4:], cache=cache)
        torch.testing.assert_close(actual.float(), model(tokens)[:, 4:], rtol=0.1, atol=0.1)
