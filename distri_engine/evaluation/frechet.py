"""The Fréchet distance of two sets of features, as if both were Gaussian. Which features they are decides what it is
called: of Inception's it is the FID, and of no other network's.
"""

from __future__ import annotations

import torch


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^½) of features [N, d] and [M, d]; A, B are their sample covariances.

    Dowson and Landau (1982); Heusel et al., "GANs trained by a two time-scale update rule" (2017). With N or M not far
    above d it is biased upwards: compare only distances of equally many pictures. Raises ValueError below two.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance of {min(len(a), len(b))} pictures does not exist; give two or more")
    first, second = a.double(), b.double()
    apart = (first.mean(0) - second.mean(0)).square().sum()
    cov_a, cov_b = first.T.cov(), second.T.cov()
    # (A B)^½ has the trace of (A^½ B A^½)^½, which is symmetric: no complex roots, however singular A and B are.
    root = _root(cov_a)
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float(apart + cov_a.trace() + cov_b.trace() - 2 * shared))


def _root(matrix: torch.Tensor) -> torch.Tensor:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
