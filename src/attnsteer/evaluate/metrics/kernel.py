"""The kernel distance between two sets of features (called KID when the features are Inception's)."""

import torch
from jaxtyping import Float
from torch import Tensor


def kernel_distance(
    first: Float[Tensor, "n features"],
    second: Float[Tensor, "m features"],
    *,
    subsets: int = 0,
    subset_size: int = 1000,
    seed: int = 0,
) -> float:
    """Squared maximum mean discrepancy with the cubic kernel, unbiased, so it may be slightly negative.

    k(x, y) = (x . y / d + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    Args:
        first: One row per picture, at least two.
        second: Likewise.
        subsets: 0 uses all pairs. Otherwise the mean over so many random subsets, as the published KID (100).
        subset_size: Rows of each subset, at most the smaller set's.
        seed: Of the subsets.

    Raises: ValueError if the shapes do not fit or a set is smaller than two or than the subsets.
    Source: Binkowski et al. 2018, arXiv:1801.01401.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features must be (n, d) and (m, d), got {tuple(first.shape)} and {tuple(second.shape)}")
    least = min(len(first), len(second))
    if least < 2 or (subsets and not 2 <= subset_size <= least):
        raise ValueError(
            f"the smaller set has {least} rows; two are needed, and subset_size ({subset_size}) at most it"
        )
    first, second = first.double(), second.double()
    if not subsets:
        return _squared_discrepancy(first, second)
    draw = torch.Generator().manual_seed(seed)
    found = 0.0
    for _ in range(subsets):
        rows = torch.randperm(len(first), generator=draw)[:subset_size]
        others = torch.randperm(len(second), generator=draw)[:subset_size]
        found += _squared_discrepancy(first[rows], second[others])
    return found / subsets


def _squared_discrepancy(first: Tensor, second: Tensor) -> float:
    within = sum(_within(features) for features in (first, second))
    return float(within - 2 * _kernel(first, second).mean())


def _within(features: Float[Tensor, "n features"]) -> Tensor:
    kernel, n = _kernel(features, features), len(features)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def _kernel(first: Float[Tensor, "n features"], second: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    return (first @ second.T / first.shape[1] + 1) ** 3
