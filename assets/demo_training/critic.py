"""What tells drawn details from decoded ones, so that the decoder learns not to be told (Esser et al., "Taming
transformers for high-resolution image synthesis", 2021, section 3.1). L1 alone answers doubt with a blur: of latents
that may mean an edge here or an edge there it makes the median of both.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from assets.demo_training import checkpoint

CHANNELS = (32, 64, 128)
STRENGTH = 0.5  # of the critic's gradient at the decoder's last layer, as a share of that of the other losses


class Critic:
    """A patch classifier, its optimiser, and what it says to the decoder."""

    def __init__(self, file: Path, device: str) -> None:
        layers: list[nn.Module] = []
        for inward, outward in zip((3, *CHANNELS), CHANNELS, strict=False):
            layers += [spectral_norm(nn.Conv2d(inward, outward, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self._net = nn.Sequential(*layers, spectral_norm(nn.Conv2d(CHANNELS[-1], 1, 3, padding=1))).to(device)
        self._net.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.AdamW(self._net.parameters(), lr=4e-4, betas=(0.5, 0.9))
        self._file, self._modules = file, {"critic": self._net}
        self._average = checkpoint.Average(self._modules)
        if file.exists():
            checkpoint.load(file, self._modules, self._average, [self._optimizer])

    def save(self) -> None:
        """To the file that it goes on from."""
        checkpoint.save(self._file, self._modules, self._average, [self._optimizer], {})

    def learn(self, drawn: torch.Tensor, made: torch.Tensor) -> None:
        """One step, hinge loss: `drawn` above 1, `made` below -1. Both: [B, 3, H, W]."""
        loss = F.relu(1 - self._net(drawn)).mean() + F.relu(1 + self._net(made.detach())).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def loss(self, made: torch.Tensor, others: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """What is added to the `others`, a scalar: how drawn `made` does not look, weighted by the gradients of both
        with respect to `last`, weights of the decoder's last layer.
        """
        self._net.requires_grad_(False)
        doubt = -self._net(made).mean()
        self._net.requires_grad_(True)
        (theirs,), (ours,) = (torch.autograd.grad(loss, last, retain_graph=True) for loss in (others, doubt))
        return STRENGTH * (theirs.norm() / (ours.norm() + 1e-6)).clamp(max=10) * doubt
