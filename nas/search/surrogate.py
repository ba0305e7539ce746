"""A Gaussian process on features of candidates: what is expected of each, and how surely."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from nas.search.rows import Array

FIT_STEPS = 10
JITTER = 1e-6
BOUND = 6.0  # on the logarithm of each setting, around where it starts
# Variance at first of: single genes, pairs of genes, whole neighbourhoods, noise.
ALONE, PAIRS, NEAR, NOISE = 0.3, 0.3, 0.4, 0.1
REACH = 3.0  # how fast a neighbourhood ends at first


@dataclass(frozen=True, slots=True)
class Posterior:
    """What a fitted process says of some candidates, the noise left out.

    `mean` and `variance` have shape (n,); `reduced` (rows known, n) is the covariance with what
    is known, divided by the factor of that one's own.
    """

    features: Array
    mean: Array
    variance: Array
    reduced: Array


class GaussianProcess:
    """Regression on similarities s in [0, 1], the weighted mean of the blocks' similarities.

    The covariance a s + b s^2 + c exp(-r (1 - s)) holds the effects of single genes, of pairs, and
    of whole neighbourhoods (the last is a product of one kernel a gene). Weights, a, b, c, r and
    the noise maximise the likelihood times a lognormal prior around where they start (Rasmussen
    and Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1, sections 4.2.4 and
    5.4.1).
    """

    def __init__(self, blocks: Array) -> None:
        """Take the block of each column, shape (columns,)."""
        self._blocks = blocks
        self._count = int(blocks.max(initial=-1)) + 1
        settings = np.log([ALONE, PAIRS, NEAR, REACH, NOISE])
        self._start = np.concatenate([np.zeros(self._count), settings])
        self._theta = self._start
        self._weighted = np.zeros((0, len(blocks)))
        self._factor = np.zeros((0, 0))
        self._solved = np.zeros(0)

    def fit(self, features: Array, values: Array, *, rows: Array) -> None:
        """Learn features of shape (n, columns) and values of shape (n,), scattered about zero.

        `rows` are the indices of those that the settings are fitted on; it starts from the last
        fit's settings.
        """
        found = minimize(
            self._loss,
            self._theta,
            args=(features[rows], values[rows]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(start - BOUND, start + BOUND) for start in self._start],
            options={"maxiter": FIT_STEPS},
        )
        self._theta = found.x
        self._weighted = features * self._column_weights(self._theta)
        covariance, _ = _kernel(self._weighted @ features.T, self._theta)
        self._factor = cholesky(_with_noise(covariance, self._theta), lower=True)
        self._solved = cho_solve((self._factor, True), values)

    def mean(self, features: Array) -> Array:
        """Return the expectations of candidates to rank them, shape (n,), in single precision."""
        known = self._weighted.astype(np.float32)
        theta = self._theta.astype(np.float32)
        covariance, _ = _kernel(features.astype(np.float32, copy=False) @ known.T, theta)
        expected: Array = (covariance @ self._solved.astype(np.float32)).astype(np.float64)
        return expected

    def posterior(self, features: Array) -> Posterior:
        """Return what is expected of candidates and how surely."""
        covariance, _ = _kernel(self._weighted @ features.T, self._theta)
        reduced = solve_triangular(self._factor, covariance, lower=True)
        prior = np.exp(self._theta[-5:-2]).sum()
        variance = np.maximum(prior - np.einsum("ij,ij->j", reduced, reduced), JITTER)
        return Posterior(features, covariance.T @ self._solved, variance, reduced)

    def knowing(self, posterior: Posterior, row: int) -> Posterior:
        """Return the posterior as if one of its candidates had turned out as expected."""
        features = posterior.features
        similarity = features @ (features[row] * self._column_weights(self._theta))
        covariance, _ = _kernel(similarity, self._theta)
        left = covariance - posterior.reduced.T @ posterior.reduced[:, row]
        left /= np.sqrt(max(left[row], 0.0) + np.exp(self._theta[-1]) + JITTER)
        variance = np.maximum(posterior.variance - left**2, JITTER)
        reduced = np.concatenate([posterior.reduced, left[None]])
        return Posterior(features, posterior.mean, variance, reduced)

    def _column_weights(self, theta: Array) -> Array:
        """Return the weight of each column's block, shape (columns,)."""
        return _shares(theta[:-5])[self._blocks]

    def _loss(self, theta: Array, features: Array, values: Array) -> tuple[float, Array]:
        """Return the negative log posterior of the settings, and its gradient."""
        similarity = (features * self._column_weights(theta)) @ features.T
        covariance, near = _kernel(similarity, theta)
        factor = cholesky(_with_noise(covariance, theta), lower=True)
        solved = cho_solve((factor, True), values)
        inverse = cho_solve((factor, True), np.eye(len(values)))
        off = theta - self._start
        loss = 0.5 * values @ solved + np.log(np.diag(factor)).sum() + 0.5 * off @ off
        alone, pairs, _, reach, noise = np.exp(theta[-5:])
        slope = 0.5 * (inverse - np.outer(solved, solved))  # of the loss, by the covariance
        by_similarity = slope * (alone + 2 * pairs * similarity + reach * near)
        by_column = np.einsum("ij,ij->j", features, by_similarity @ features)
        by_weight = np.bincount(self._blocks, by_column, minlength=self._count)
        weights = _shares(theta[:-5])
        by_setting = (
            alone * np.sum(slope * similarity),
            pairs * np.sum(slope * similarity**2),
            np.sum(slope * near),
            reach * np.sum(slope * near * (similarity - 1.0)),
            noise * np.trace(slope),
        )
        gradient = np.concatenate([weights * (by_weight - weights @ by_weight), by_setting])
        return float(loss), gradient + off


def _kernel(similarity: Array, theta: Array) -> tuple[Array, Array]:
    """Return the covariance at similarities, and the neighbourhoods' part of it."""
    alone, pairs, near, reach = np.exp(theta[-5:-1])
    neighbourhood = similarity * reach
    neighbourhood -= reach
    np.exp(neighbourhood, out=neighbourhood)
    neighbourhood *= near
    covariance = similarity * pairs  # in place from here: these arrays are the largest there are
    covariance += alone
    covariance *= similarity
    covariance += neighbourhood
    return covariance, neighbourhood


def _with_noise(covariance: Array, theta: Array) -> Array:
    covariance[np.diag_indices_from(covariance)] += np.exp(theta[-1]) + JITTER
    return covariance


def _shares(logits: Array) -> Array:
    raised = np.exp(logits - logits.max())
    shares: Array = raised / raised.sum()
    return shares
