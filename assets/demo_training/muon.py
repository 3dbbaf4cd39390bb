"""Muon (Jordan et al., 2024): momentum whose singular values are all set to about one. For matrices and, reshaped to
matrices, convolutions; torch.optim.Muon takes 2-D parameters only. Everything else is left to AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# Coefficients of the quintic Newton-Schulz iteration that pushes singular values towards one in five rounds.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """The update's root mean square is matched to AdamW's (0.2 x lr), so that learning rates compare."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Apply the gradients."""
        assert closure is None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(param)
                state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                update = param.grad.lerp(state["momentum"], group["momentum"]).reshape(param.shape[0], -1)
                scale = 0.2 * max(update.shape) ** 0.5
                update = _orthogonalised(update).reshape(param.shape).to(param.dtype)
                param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def _orthogonalised(matrix: torch.Tensor) -> torch.Tensor:  # matrix: [rows, columns]
    if matrix.is_cuda:
        matrix = matrix.bfloat16()
    tall = matrix.shape[0] > matrix.shape[1]
    if tall:
        matrix = matrix.T
    matrix = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = _A * matrix + (_B * gram + _C * gram @ gram) @ matrix
    return matrix.T if tall else matrix
