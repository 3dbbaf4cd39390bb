"""What the UNet learns from: latents and tokenised captions of the whole training set, in memory, and random batches of
them. No tokenizer and no picture is touched during training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from assets.demo_training.captions import caption
from assets.demo_training.grammar import Scene
from assets.demo_training.hand_set_vae import analytic_latents
from assets.demo_training.scenes import as_tensor
from assets.demo_training.text import load_tokenizers, token_ids

PARAPHRASES = 4  # captions a picture
SIZES = (128, 192, 256, 384, 512, 768, 1024)  # what the size conditioning may claim


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from."""

    latents: torch.Tensor  # [B, 4, 32, 32]
    ids: torch.Tensor  # [B, 77]
    ids_2: torch.Tensor  # [B, 77]
    sizes: torch.Tensor  # [B, 6]: SDXL's time ids


class Lessons:
    """Latents and tokenised captions of the whole training set, in memory."""

    def __init__(self, folder: Path, scenes: list[Scene], pictures: np.ndarray, device: str, seed: int) -> None:
        self._rng, self._device = np.random.default_rng(seed), device
        chunks = (analytic_latents(as_tensor(pictures[i : i + 50], device)).half() for i in range(0, len(pictures), 50))
        self.latents = torch.cat(list(chunks))
        self._tokenizers = load_tokenizers(folder)
        self.empty = [token_ids(tokenizer, [""]).to(device).long() for tokenizer in self._tokenizers]
        self._ids = [self._tokenise(scenes) for _ in range(PARAPHRASES)]

    def _tokenise(self, scenes: list[Scene]) -> list[torch.Tensor]:
        captions = [caption(scene, self._rng) for scene in scenes]
        return [token_ids(tokenizer, captions).to(self._device) for tokenizer in self._tokenizers]

    def draw(self, count: int) -> Batch:
        """A random batch."""
        rng, device = self._rng, self._device
        chosen = torch.from_numpy(rng.integers(0, len(self.latents), count)).to(device)
        ids, ids_2 = self._ids[rng.integers(0, PARAPHRASES)]
        # Half of the pictures claim their true size, the others any size: other sizes must not surprise the UNet.
        sizes = np.where(rng.random((count, 1)) < 0.5, 256, rng.choice(SIZES, (count, 2)))
        size = torch.from_numpy(sizes).to(device)
        return Batch(
            latents=self.latents[chosen].float(),
            ids=ids[chosen].long(),
            ids_2=ids_2[chosen].long(),
            sizes=torch.cat([size, torch.zeros_like(size), size], 1).float(),
        )
