"""What the UNet learns from: latents and tokenised captions of the whole training set, in memory, and random batches of
them, each of one shape. No tokenizer and no picture is touched during training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from assets.demo_training.captions import caption
from assets.demo_training.grammar import Scene
from assets.demo_training.scenes import Lot
from assets.demo_training.text import load_tokenizers, token_ids

PARAPHRASES = 4  # captions a picture
SIZES = (128, 192, 256, 384, 512, 768, 1024)  # what the size conditioning may claim when it does not tell the truth
TRUE = 0.85  # share of pictures whose size conditioning does
THEN, LAST = 0.3, 0.7  # shares of the training after which the next lessons begin


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from."""

    latents: torch.Tensor  # [B, 4, H / 8, W / 8]
    ids: torch.Tensor  # [B, 77]
    ids_2: torch.Tensor  # [B, 77]
    sizes: torch.Tensor  # [B, 6]: SDXL's time ids


class Lessons:
    """Latents and tokenised captions of the whole training set, in memory."""

    def __init__(self, folder: Path, lots: Sequence[Lot], device: str, seed: int) -> None:
        self._rng, self._device = np.random.default_rng(seed), device
        self._shapes = [lot.shape for lot in lots]
        parts = {name: np.array([getattr(shape, name) for shape in self._shapes]) for name in ("first", "then", "last")}
        self._weights = {name: shares / shares.sum() for name, shares in parts.items()}
        self._latents = [torch.from_numpy(np.array(lot.latents)).to(device) for lot in lots]
        self._tokenizers = load_tokenizers(folder)
        self.empty = [token_ids(tokenizer, [""]).to(device).long() for tokenizer in self._tokenizers]
        self._ids = [[self._tokenise(lot.scenes) for _ in range(PARAPHRASES)] for lot in lots]

    def _tokenise(self, scenes: list[Scene]) -> list[torch.Tensor]:
        captions = [caption(scene, self._rng) for scene in scenes]
        return [token_ids(tokenizer, captions).to(self._device) for tokenizer in self._tokenizers]

    def draw(self, most: int, share: float) -> Batch:
        """A random batch of a random shape: `most` pictures of 256 x 256, fewer of larger ones; `share` of the training
        is over.
        """
        rng, device = self._rng, self._device
        lessons = "first" if share < THEN else "then" if share < LAST else "last"
        lot = int(rng.choice(len(self._shapes), p=self._weights[lessons]))
        shape, latents = self._shapes[lot], self._latents[lot]
        count = max(1, round(most * shape.batch))
        chosen = torch.from_numpy(rng.integers(0, len(latents), count)).to(device)
        ids, ids_2 = self._ids[lot][rng.integers(0, PARAPHRASES)]
        # Most pictures claim their true size as the original and the target, the others any: no claim must surprise.
        true = np.broadcast_to((shape.height, shape.width), (count, 2))
        sizes = np.where(rng.random((count, 1)) < TRUE, true, rng.choice(SIZES, (count, 2)))
        size = torch.from_numpy(sizes.copy()).to(device)
        return Batch(
            latents=latents[chosen].float(),
            ids=ids[chosen].long(),
            ids_2=ids_2[chosen].long(),
            sizes=torch.cat([size, torch.zeros_like(size), size], 1).float(),
        )
