"""The study of routing: measures by hand, the rule on synthetic rows, and a tiny run."""

import dataclasses
import json

import pytest
import torch

from sigmoid_attention.cli import main
from sigmoid_attention.lab.rows import ARMS, ROW_SCHEMA, SIGMOID, SOFTMAX
from sigmoid_attention.nn import DecoderLM
from sigmoid_attention.studies.routing import findings as rule
from sigmoid_attention.studies.routing.findings import QUANTITIES, findings, verdict
from sigmoid_attention.studies.routing.measure import (
    choices,
    churn,
    entropy,
    largest,
    loads,
    similarities,
)
from sigmoid_attention.studies.routing.page import BEGIN, END, command, draw, markdown, publish
from sigmoid_attention.studies.routing.run import run
from sigmoid_attention.studies.routing.setting import (
    PAIRS,
    RoutingSetting,
    active_parameters,
    model_config,
)
from tests.support.studies.routing_rows import LOSSES, TINY, run_rows


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog and back again. " * 80)
    return str(path)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_arms_of_a_pair_differ_in_the_gate_alone(pair):
    softmax, sigmoid = (model_config(pair, arm, RoutingSetting()) for arm in ARMS)
    assert (softmax.moe.gate, sigmoid.moe.gate) == (SOFTMAX, SIGMOID)
    assert dataclasses.replace(softmax.moe, gate=SIGMOID) == sigmoid.moe
    assert dataclasses.replace(softmax, moe=sigmoid.moe) == sigmoid
    assert active_parameters(softmax) == active_parameters(sigmoid)


@pytest.mark.parametrize("pair, visits", [("top-2", 2), ("all experts", 4)])
def test_active_parameters_are_those_that_multiply_a_token(pair, visits):
    config = model_config(pair, SIGMOID, TINY)
    model = DecoderLM(config)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    idle = config.layers * (4 - visits) * 3 * 8 * 4
    assert active_parameters(config) == matrices - idle


def one_expert_for_all(model):
    """Every token of the first layer goes to experts 0 and 3."""
    router = model.blocks[0].feed_forward.router
    router.intercept = torch.nn.Parameter(torch.tensor([9.0, -9.0, -9.0, 8.0]))
    return model


def test_choices_loads_and_their_summaries():
    model = one_expert_for_all(DecoderLM(model_config("top-2", SIGMOID, TINY)))
    probe = torch.randint(257, (3, 16))
    chosen = choices(model, probe)
    assert [tuple(choice.shape) for choice in chosen] == [(3, 16, 4), (3, 16, 4)]
    assert chosen[0].sum((0, 1)).tolist() == [48, 0, 0, 48]
    load, right = loads(model, probe)
    assert load.tolist() == [0.5, 0, 0, 0.5] and right.sum() == pytest.approx(1)
    assert entropy(load) == pytest.approx(0.5) and largest(load) == 2
    assert model.training


def test_where_all_experts_are_visited_the_load_is_that_of_their_weights():
    model = one_expert_for_all(DecoderLM(model_config("all experts", SIGMOID, TINY)))
    load = loads(model, torch.randint(257, (3, 16)))[0]
    assert load[0] == pytest.approx(0.5, abs=0.02) and load[1] < 0.01


def test_churn_counts_tokens_and_not_visits():
    before = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]]).bool()
    after = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]]]).bool()
    assert churn(before, after) == pytest.approx(2 / 3)
    assert churn(before, before) == 0


def test_similarity_is_the_mean_cosine_over_pairs_of_experts():
    model = DecoderLM(model_config("top-2", SIGMOID, TINY)).double()
    probe = torch.randint(257, (2, 16))
    seen = []
    layer = model.blocks[1].feed_forward
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    answer = similarities(model, probe)[1]
    handle.remove()
    each = layer.experts.each(seen[0].flatten(0, 1))
    cosines = [
        torch.nn.functional.cosine_similarity(each[a], each[b], dim=-1).mean()
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    assert answer == pytest.approx(torch.stack(cosines).mean().item())


def test_experts_that_are_one_have_a_similarity_of_one():
    model = DecoderLM(model_config("top-2", SIGMOID, TINY)).double()
    experts = model.blocks[0].feed_forward.experts
    with torch.no_grad():
        for weight in (experts.gate_up, experts.down):
            weight.copy_(weight[:1].expand_as(weight))
    assert similarities(model, torch.randint(257, (2, 16)))[0] == pytest.approx(1)


@pytest.mark.parametrize("standing", LOSSES)
def test_the_rule_on_the_loss(standing, tmp_path):
    losses = [f for f in findings(run_rows(tmp_path, LOSSES[standing])) if f.quantity is rule.LOSS]
    assert [f.pair for f in losses] == list(PAIRS)
    assert {f.standing for f in losses} == {standing}
    assert losses[0].softmax.mean == pytest.approx(2.05)
    assert losses[0].difference.mean == pytest.approx(sum(LOSSES[standing]) / 3)
    pairs = ", ".join(f"“{pair}”" for pair in PAIRS)
    assert verdict(losses).endswith(f"softmax routing: {standing} in {pairs}.")


def test_of_a_higher_entropy_more_is_better_and_there_is_no_margin(tmp_path):
    by_pair = {
        (f.pair, f.quantity.metric): f for f in findings(run_rows(tmp_path, LOSSES["worse"]))
    }
    assert by_pair["top-2", "load_entropy"].standing == "better"
    assert by_pair["top-2", "churn"].standing == "worse"
    close = findings(run_rows(tmp_path / "close", LOSSES["equal"]))
    assert {f.standing for f in close if f.quantity is not rule.LOSS} == {"undecided"}


def test_two_seeds_decide_nothing(tmp_path):
    assert {f.standing for f in findings(run_rows(tmp_path, seeds=2))} == {"undecided"}


def test_a_pair_with_one_arm_is_left_out(tmp_path):
    rows = run_rows(tmp_path)
    kept = [row for row in rows.to_pylist() if row["arm"] != "top-2 sigmoid"]
    results = findings(rows.from_pylist(kept, schema=ROW_SCHEMA))
    assert "top-2" not in {finding.pair for finding in results} and results


class TestPage:
    def test_the_same_rows_make_the_same_bytes_between_the_markers(self, tmp_path):
        document = tmp_path / "routing.md"
        document.write_text(f"# Words\n\n{BEGIN}\nold\n{END}\n\nmore words\n")
        rows = run_rows(tmp_path)
        publish(rows, document)
        first = document.read_bytes(), (tmp_path / "routing" / "routing.svg").read_bytes()
        publish(rows, document)
        again = document.read_bytes(), (tmp_path / "routing" / "routing.svg").read_bytes()
        assert first == again
        text = first[0].decode()
        assert text.startswith("# Words\n\n") and text.endswith(f"{END}\n\nmore words\n")
        assert "old" not in text and "(routing/routing.svg)" in text
        assert "| top-2 | held-out loss" in text and "-0.060 (-0.085 to -0.035) | better |" in text
        assert "on a processor, 1 thread, torch 2.13.0." in text
        assert "**Rule.** In each pair, " in text
        assert "7 of 7 parameters multiply a token in “all experts”" in text

    def test_the_command_makes_the_rows_again(self, tmp_path):
        message = command(run_rows(tmp_path))
        assert message == "sigmoid-attention routing --data stdlib --seeds 3 --steps 4"

    def test_a_panel_for_every_quantity(self, tmp_path):
        axes = draw(findings(run_rows(tmp_path))).axes
        assert [axis.get_title() for axis in axes] == [q.label for q in QUANTITIES]

    def test_results_that_cannot_be_published_are_refused(self, tmp_path):
        rows = run_rows(tmp_path)
        with pytest.raises(ValueError, match=r"docs:? .*nowhere\.md is no document"):
            publish(rows, tmp_path / "nowhere.md")
        (tmp_path / "bare.md").write_text("words")
        with pytest.raises(ValueError, match="does not have <!-- routing --> and, below it"):
            publish(rows, tmp_path / "bare.md")
        with pytest.raises(ValueError, match="no pair of arms has finished"):
            markdown(rows.slice(0, 0), "figure.svg")


class TestCommand:
    def test_it_prints_publishes_and_resumes(self, text_file, tmp_path, capsys):
        document = tmp_path / "page.md"
        document.write_text(f"{BEGIN}{END}")
        out = ["--out", str(tmp_path / "out"), "--data", text_file, "--steps", "1", "--seeds", "1"]
        assert main(["routing", *out]) == 0
        assert "softmax routing: undecided in “top-2”" in capsys.readouterr().out
        assert main(["routing", *out, "--resume", "--docs", str(document)]) == 0
        assert "| top-2 | held-out loss" in document.read_text()
        assert main(["routing", *out]) == 2
        assert "is not empty; nothing was overwritten" in capsys.readouterr().err

    def test_a_missing_document_is_named_before_any_work(self, tmp_path, capsys):
        argv = ["routing", "--docs", str(tmp_path / "no.md"), "--out", str(tmp_path / "out")]
        assert main(argv) == 2
        assert capsys.readouterr().err.endswith("no.md is no document\n")
        assert not (tmp_path / "out").exists()


class TestRun:
    def test_a_run_is_resumed_and_grown_and_has_a_row_for_every_claim(self, text_file, tmp_path):
        setting = dataclasses.replace(TINY, data=text_file)
        store = run(setting, tmp_path / "out")
        rows = store.rows()
        results = findings(rows)
        dense = [f.quantity.metric for f in results if f.pair == "all experts"]
        assert [f.quantity for f in results if f.pair == "top-2"] == list(QUANTITIES)
        assert "churn" not in dense and len(dense) == 4
        stamp = json.loads(rows["provenance"][0].as_py())
        assert stamp["bytes"] == 4800
        parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/rows").iterdir()}
        grown = run(dataclasses.replace(setting, seeds=2), tmp_path / "out", resume=True)
        assert {p: p.stat().st_mtime_ns for p in parts} == parts
        assert sorted(set(grown.rows()["seed"].to_pylist())) == [100, 101]
        with pytest.raises(ValueError, match="steps was 4 when this folder was started and is 5"):
            run(dataclasses.replace(setting, steps=5), tmp_path / "out", resume=True)

    def test_the_same_seed_gives_the_same_rows(self, text_file, tmp_path):
        setting = dataclasses.replace(TINY, data=text_file)
        left, right = (run(setting, tmp_path / name).rows() for name in ("one", "other"))
        assert left["value"].to_pylist() == right["value"].to_pylist()

    @pytest.mark.parametrize("field", ["seeds", "steps", "lr", "seq_len"])
    def test_sizes_must_be_positive(self, field):
        with pytest.raises(ValueError, match=f"{field} must be positive, got 0"):
            RoutingSetting(**{field: 0})
