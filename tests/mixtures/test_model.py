"""Families of mixtures: gates, derivatives and invariances."""

import itertools

import pytest
import torch

from sigmoid_attention.mixtures import EXPERTS, GATES, SCORES, Mixture

each_gate = pytest.mark.parametrize("gate", GATES)


def drawn(family: Mixture, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters (count, P) and inputs (7, d)."""
    theta = 0.7 * torch.randn(count, family.size, dtype=torch.float64)
    return theta, torch.randn(7, family.d, dtype=torch.float64)


@pytest.mark.parametrize("temperature", (False, True), ids=("plain", "temperature"))
@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("score", SCORES)
@each_gate
def test_derivatives_are_those_of_autograd(gate, score, expert, temperature):
    family = Mixture(gate, expert, score, k=3, d=3, temperature=temperature)
    theta, inputs = drawn(family)
    answer, jacobian = family.predict_with_jacobian(theta, inputs)
    torch.testing.assert_close(answer, family.predict(theta, inputs))
    for theta_P, analytic in zip(theta, jacobian, strict=True):
        expected = torch.autograd.functional.jacobian(
            lambda theta: family.predict(theta, inputs), theta_P
        )
        torch.testing.assert_close(analytic, expected, rtol=1e-10, atol=1e-10)


@each_gate
def test_weights_of_competing_gates_sum_to_one(gate):
    scores = 3 * torch.randn(50, 5, dtype=torch.float64)
    weights = GATES[gate].weights(scores)
    if gate in ("softmax", "normalised_sigmoid", "sparsemax", "entmax15"):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(50, dtype=torch.float64))
    assert weights.isfinite().all()


@each_gate
def test_a_shift_of_the_scores_is_seen_where_the_gate_says_so(gate):
    scores = torch.randn(50, 5, dtype=torch.float64)
    same = torch.allclose(GATES[gate].weights(scores), GATES[gate].weights(scores + 1.3))
    assert same == GATES[gate].shift


@pytest.mark.parametrize(("gate", "power"), (("sparsemax", 2.0), ("entmax15", 1.5)))
def test_sparse_weights_maximise_score_and_entropy(gate, power):
    """Tsallis entropy of order 2 gives sparsemax, of order 1.5 entmax; any other point is worse."""

    def worth(weights, scores):
        entropy = (1 - (weights**power).sum(-1)) / (power * (power - 1))
        return (weights * scores).sum(-1) + entropy

    scores = 2 * torch.randn(20, 4, dtype=torch.float64)
    best = worth(GATES[gate].weights(scores), scores)
    others = torch.distributions.Dirichlet(torch.ones(4, dtype=torch.float64)).sample((500, 20))
    assert (worth(others, scores) <= best + 1e-12).all()


@each_gate
def test_the_order_of_experts_does_not_matter(gate):
    family = Mixture(gate, "gelu", k=3, d=2)
    theta, inputs = drawn(family, 1)
    for order in itertools.permutations(range(3)):
        other = family.atoms(theta)[:, list(order)].flatten(-2)
        torch.testing.assert_close(family.predict(other, inputs), family.predict(theta, inputs))


def test_two_softmax_experts_are_two_sigmoid_experts():
    """softmax over (s1, s2) weighs by sigmoid(s1 - s2) and sigmoid(s2 - s1)."""
    softmax, sigmoid = Mixture("softmax", "tanh", k=2, d=2), Mixture("sigmoid", "tanh", k=2, d=2)
    theta, inputs = drawn(softmax, 1)
    atoms = softmax.atoms(theta)[0].clone()
    apart = atoms[0, :3] - atoms[1, :3]
    atoms[0, :3], atoms[1, :3] = apart, -apart
    torch.testing.assert_close(
        sigmoid.predict(atoms.flatten(), inputs), softmax.predict(theta[0], inputs)
    )


def test_a_quadratic_score_is_that_of_its_symmetric_matrix():
    family = Mixture("sigmoid", "constant", "fully_quadratic", k=1, d=3)
    theta, inputs = drawn(family, 1)
    part = family.parts
    flat = theta[0, part["A"]]
    matrix = torch.zeros(3, 3, dtype=torch.float64)
    row, column = torch.triu_indices(3, 3)
    matrix[row, column] = torch.where(row == column, flat, flat / 2**0.5)
    matrix = matrix + matrix.triu(1).mT
    assert torch.linalg.matrix_norm(matrix).item() == pytest.approx(flat.norm().item())
    score = torch.einsum("qd,de,qe->q", inputs, matrix, inputs) + inputs @ theta[0, part["b"]]
    expected = (score + theta[0, part["c"]]).sigmoid() * theta[0, part["eta_c"]]
    torch.testing.assert_close(family.predict(theta[0], inputs), expected)


@pytest.mark.parametrize(
    ("error", "wrong", "sentence"),
    (
        (ValueError, {"gate": "step"}, "gate must be one of sigmoid, softmax, .* got 'step'"),
        (ValueError, {"expert": "tree"}, "expert must be one of relu, .* got 'tree'"),
        (ValueError, {"score": "cubic"}, "score must be one of linear, .* got 'cubic'"),
        (ValueError, {"k": 0}, "k must be a whole number of 1 or more, got 0"),
        (ValueError, {"d": -1}, "d must be a whole number of 1 or more, got -1"),
        (TypeError, {"k": 2.5}, "k must be a whole number of 1 or more, got 2.5"),
        (
            TypeError,
            {"temperature": "no"},
            "temperature must be True or False, got the string 'no'",
        ),
    ),
)
def test_bad_families_are_refused(error, wrong, sentence):
    with pytest.raises(error, match=f"^{sentence}$"):
        Mixture(**{"gate": "sigmoid", "expert": "gelu", **wrong})
