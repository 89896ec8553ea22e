"""Fit a mixture of two experts with a sigmoid gate, and read its gate."""

import numpy as np

from sigmoid_attention.mixtures.estimators import MixtureOfExpertsRegressor

rng = np.random.default_rng(0)
X = rng.uniform(-3, 3, (500, 1))
y = np.where(X[:, 0] > 0, 2 * X[:, 0], -X[:, 0]) + 0.1 * rng.standard_normal(500)

for gate in ("sigmoid", "softmax"):
    model = MixtureOfExpertsRegressor(n_experts=2, gate=gate, random_state=0).fit(X, y)
    print(f"{gate}: R^2 = {model.score(X, y):.3f}, converged: {model.converged_}")

points = np.array([[-2.0], [0.0], [2.0]])
print("weights of the two experts at x = -2, 0, 2:")
print(model.gate_weights(points).round(2))
