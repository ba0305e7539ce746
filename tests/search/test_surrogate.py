"""The regression against scikit-learn's, its definition, and its gradient by differences."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from nas.search.features import Features
from nas.search.surrogate import GaussianProcess, _kernel

GENES = {"a": ("x", "y", "z"), "only": (1,), "d": (4, 1, 2), "k": ((7, 5), (5, 3))}


@pytest.fixture
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, [3, 1, 3, 2], size=(40, 4))


def similarity(features: Features, one: list[int], other: list[int], block: int) -> float:
    pair = features(np.array([one, other]))[:, features.blocks == block]
    return float(pair[0] @ pair[1])


class TestFeatures:
    def test_names_are_equal_or_not_and_numbers_are_near_or_far(self) -> None:
        features = Features(GENES)
        first = [0, 0, 0, 0]  # a = x, d = 4
        assert [similarity(features, first, [code, 0, 0, 0], 0) for code in range(3)] == [1, 0, 0]
        by_d = [similarity(features, first, [0, 0, code, 0], 1) for code in range(3)]
        assert by_d == pytest.approx([1, 0, 0.25])  # 4 is equal to 4, two ranks from 1, one from 2

    def test_single_precision_says_the_same(self, rows: np.ndarray) -> None:
        features = Features(GENES)
        single = features(rows, single=True)
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, features(rows), rtol=1e-6)

    def test_every_row_is_as_long_in_every_gene_with_a_choice(self, rows: np.ndarray) -> None:
        features = Features(GENES)
        squares = features(rows) ** 2
        for block in range(3):
            assert squares[:, features.blocks == block].sum(axis=1) == pytest.approx(1)
        assert set(features.blocks) == {0, 1, 2}


class TestGaussianProcess:
    def fitted(self, rows: np.ndarray) -> tuple[GaussianProcess, Any, np.ndarray]:
        features = Features(GENES)
        values = np.sin(rows @ [1.0, 0.0, 2.0, 4.0])
        process = GaussianProcess(features.blocks)
        process.fit(features(rows), values - values.mean(), rows=np.arange(len(rows)))
        return process, features, values - values.mean()

    def test_the_gradient_is_that_of_the_loss(self, rows: np.ndarray) -> None:
        features = Features(GENES)
        process = GaussianProcess(features.blocks)
        values = np.random.default_rng(1).normal(size=len(rows))
        theta = process._start + np.random.default_rng(2).normal(0, 0.5, len(process._start))
        found = process._loss(theta, features(rows), values)[1]

        def loss(theta: np.ndarray) -> float:
            return process._loss(theta, features(rows), values)[0]

        expected = approx_fprime(theta, loss, 1e-6)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)

    def test_it_predicts_what_scikit_learn_does_with_the_same_covariance(
        self, rows: np.ndarray
    ) -> None:
        # On features of constant length, exp(-r (1 - s)) is the squared exponential.
        process, features, values = self.fitted(rows)
        process._theta[-5:-3] = -50.0  # no effects of single genes and of pairs
        process._start = process._theta
        process.fit(features(rows), values, rows=np.zeros(0, dtype=int))
        near, reach, noise = np.exp(process._theta[-3:])
        scale = np.sqrt(process._column_weights(process._theta))
        theirs = GaussianProcessRegressor(
            ConstantKernel(near) * RBF(1 / np.sqrt(reach)) + WhiteKernel(noise + 1e-6),
            optimizer=None,
        ).fit(features(rows) * scale, values)
        asked = features(np.array([[2, 0, 1, 1], [0, 0, 0, 0], [1, 0, 2, 1]]))
        mean, deviation = theirs.predict(asked * scale, return_std=True)
        found = process.posterior(asked)
        assert found.mean == pytest.approx(mean, abs=1e-6)
        assert found.variance == pytest.approx(deviation**2 - noise - 1e-6, abs=1e-5)
        assert process.mean(asked) == pytest.approx(mean, abs=1e-4)

    def test_knowing_a_candidate_is_conditioning_on_it(self, rows: np.ndarray) -> None:
        process, features, _ = self.fitted(rows[:12])
        asked = features(rows[12:])
        before = process.posterior(asked)
        after = process.knowing(process.knowing(before, 3), 5)
        known = features(np.concatenate([rows[:12], rows[[15, 17]]]))
        weights = process._column_weights(process._theta)
        theta = process._theta
        own = _kernel((known * weights) @ known.T, theta)[0]
        own[np.diag_indices_from(own)] += np.exp(theta[-1]) + 1e-6
        cross = _kernel((known * weights) @ asked.T, theta)[0]
        prior = np.exp(theta[-5:-2]).sum()
        expected = prior - np.einsum("ij,ij->j", cross, np.linalg.solve(own, cross))
        assert after.variance == pytest.approx(np.maximum(expected, 1e-6), abs=1e-6)
        assert (after.variance <= before.variance + 1e-12).all()
        assert after.mean is before.mean

    def test_it_finds_which_gene_matters(self) -> None:
        genes = {f"g{gene}": ("a", "b", "c", "d") for gene in range(5)}
        rows = np.random.default_rng(3).integers(0, 4, size=(60, 5))
        values = np.array([-1.0, 0.0, 2.0, -1.0])[rows[:, 3]]
        features = Features(genes)
        process = GaussianProcess(features.blocks)
        process.fit(features(rows), values, rows=np.arange(60))
        weights = [process._column_weights(process._theta)[4 * gene] for gene in range(5)]
        assert np.argmax(weights) == 3
        assert weights[3] > 3 * sorted(weights)[-2]

    def test_equal_values_and_equal_rows_do_not_break_it(self) -> None:
        features = Features(GENES)
        same = features(np.zeros((30, 4), dtype=int))
        process = GaussianProcess(features.blocks)
        process.fit(same, np.zeros(30), rows=np.arange(30))
        assert process.posterior(same[:2]).mean == pytest.approx([0, 0])
