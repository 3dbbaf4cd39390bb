"""Muon (Jordan et al., 2024): momentum whose singular values are all set to about one. For matrices and, reshaped to
matrices, convolutions; torch.optim.Muon takes 2-D parameters only, one at a time. Everything else is left to AdamW.
"""

from __future__ import annotations

from collections import defaultdict
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
        *,
        low_precision: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = torch.bfloat16 if low_precision else torch.float32  # of the iteration, which forgives rounding

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Apply the gradients; matrices of one shape are orthogonalised together."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[torch.nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    rows, columns = param.shape[0], param[0].numel()
                    alike[min(rows, columns), max(rows, columns)].append(param)
            for (rows, columns), params in alike.items():
                directions = _orthogonalised(
                    torch.stack([self._direction(param, group["momentum"], rows) for param in params]).to(self._dtype)
                )
                for param, direction in zip(params, directions.float(), strict=True):
                    update = direction if param.shape[0] == rows else direction.T
                    scale = 0.2 * columns**0.5
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update.reshape(param.shape), alpha=-group["lr"] * scale)

    def _direction(self, param: torch.nn.Parameter, momentum: float, rows: int) -> torch.Tensor:
        """The gradient with Nesterov momentum, as a wide matrix of `rows` rows."""
        assert param.grad is not None
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        state["momentum"].lerp_(param.grad, 1 - momentum)
        matrix = param.grad.lerp(state["momentum"], momentum).reshape(param.shape[0], -1)
        return matrix if param.shape[0] == rows else matrix.T


def _orthogonalised(matrices: torch.Tensor) -> torch.Tensor:  # matrices: [count, rows, columns], wide ones
    matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = matrices @ matrices.mT
        matrices = torch.baddbmm(matrices, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), matrices, beta=_A)
    return matrices
