"""Row-parallel decode against plain decode, and previews against the decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.gang import run_on_ranks
from tests.support.models import demo_pipeline, relative, tiny_vae

SIZES = ((16, 12), (7, 8), (32, 32))


# The oracle is plain decode in float64: in float32 it is itself up to 9e-6 away from that on these random weights, and
# ours is nearer, because shared moments are kept in float64.
TOLERANCE = 3e-6


def latents(rows: int, cols: int) -> torch.Tensor:
    return torch.randn(2, 4, rows, cols, generator=torch.Generator().manual_seed(0)) * 0.13


def decode(attention: bool) -> list[torch.Tensor | None]:
    """On a rank: every size, met on rank 0; the last one also on every rank."""
    from distri_engine import DistriConfig, open_mesh
    from distri_engine.vae import ParallelDecoder

    with open_mesh(DistriConfig()) as mesh:
        decoder = ParallelDecoder(tiny_vae(attention=attention), mesh)
        met = [decoder(latents(*size)) for size in SIZES]
        return [*met, decoder(latents(*SIZES[0]), on_every_rank=True), decoder(latents(2, 8))]


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("attention", [True, False])
def test_parallel_decode_equals_plain_decode(world: int, attention: bool) -> None:
    vae = tiny_vae(attention=attention).double()
    with torch.no_grad():
        plain = [
            vae.decode(latents(*size).double() / 0.13, return_dict=False)[0] for size in (*SIZES, SIZES[0], (2, 8))
        ]
    first, *others = run_on_ranks(world, decode, attention)
    for ours, theirs in zip(first, plain, strict=True):
        assert ours is not None
        assert relative(ours, theirs) < TOLERANCE
    for other in others:
        assert [picture is None for picture in other] == [True, True, True, False, True]
        assert torch.equal(other[3], first[3])


def test_preview_resembles_the_decoded_picture() -> None:
    from distri_engine.preview import LatentPreview

    pipe = demo_pipeline()
    generator = torch.Generator().manual_seed(3)
    made = pipe("a red lighthouse by the sea", num_inference_steps=8, generator=generator, output_type="latent").images
    with torch.no_grad():
        picture = pipe.vae.decode(made / pipe.vae.config.scaling_factor, return_dict=False)[0]
    small = torch.nn.functional.avg_pool2d((picture + 1) * 127.5, 8)[0].permute(1, 2, 0).numpy()
    preview = np.asarray(LatentPreview.of(pipe.vae)(made)).astype(float)
    assert preview.shape == small.shape
    assert np.abs(preview - small).mean() < 12  # of 255
    assert np.corrcoef(preview.ravel(), small.ravel())[0, 1] > 0.97
