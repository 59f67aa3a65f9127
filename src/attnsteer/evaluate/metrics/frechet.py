"""The Frechet distance between two sets of features (called FID when the features are Inception's)."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(first: Float[Tensor, "n features"], second: Float[Tensor, "m features"]) -> float:
    """Squared Frechet distance between the normal distributions fitted to two sets of features.

    d^2 = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2),   S unbiased (divided by n - 1)

    The last trace is the sum of singular values of A_1 A_2^T, where S_i = A_i^T A_i: with fewer samples than features
    A_i are the centred samples themselves, otherwise square roots of the covariances. Never negative up to rounding,
    no iterative matrix square root, float64 throughout.

    Args:
        first: One row per picture, at least two.
        second: Likewise.

    Raises: ValueError if the shapes do not fit, a set has fewer than two rows, or a value is not finite.
    Source: Heusel et al. 2017, arXiv:1706.08500; Dowson & Landau 1982, J. Multivariate Anal. 12, 450.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the two sets have {first.shape[1]} and {second.shape[1]} features; use one extractor")
    mean = (first.mean(0) - second.mean(0)).square().sum()
    factors = [_factor(features) for features in (first, second)]
    cross = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return float(mean + factors[0].square().sum() + factors[1].square().sum() - 2 * cross)


def _factor(features: Float[Tensor, "n features"]) -> Float[Tensor, "rows features"]:
    """A with A^T A = the unbiased covariance, with as few rows as possible."""
    samples, width = features.shape
    centred = (features - features.mean(0)) / (samples - 1) ** 0.5
    if samples <= width:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a distance needs two or more rows of features per set, got shape {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError("features must be finite")
    return features.double()
