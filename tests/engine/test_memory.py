"""Memory over many pictures: buffers serve again for the same shape and go away for another, and nothing piles up."""

from __future__ import annotations

import psutil
import torch

from tests.support.gang import run_on_ranks
from tests.support.models import sdxl_inputs, tiny_sdxl_unet

_MIB = 2**20
# (latent rows, columns, batch, method and mode): heights, widths, batches and methods all change.
SHAPES = (
    (16, 16, 2, {"mode": "corrected_async_gn"}),
    (40, 16, 2, {"mode": "extrapolated"}),
    (16, 32, 4, {"mode": "stale_gn"}),
    (24, 8, 2, {"mode": "corrected_async_gn", "warmup_steps": "auto"}),
    (16, 24, 2, {"parallelism": "naive_patch"}),
)


def many_pictures(rounds: int) -> list[tuple[float, float]]:
    """On a rank: (resident, shared) MiB after every round of SHAPES."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    memory = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for _ in range(rounds):
            for rows, columns, batch, how in SHAPES:
                unet.begin(DistriConfig(**{"warmup_steps": 1, "split_batch": False, **how}))
                for step in range(4):
                    unet(**sdxl_inputs(batch, rows, columns), timestep=900 - 100 * step)
                unet.end()
            info = psutil.Process().memory_info()
            memory.append((info.rss / _MIB, info.shared / _MIB))
    return memory


def test_fifty_pictures_of_changing_shapes_need_no_more_than_the_first_ten() -> None:
    for memory in run_on_ranks(2, many_pictures, 10):
        resident = [rss for rss, _ in memory]
        print("resident MiB after every five pictures:", *(f"{value:.0f}" for value in resident))
        assert max(resident[2:]) <= max(resident[:2]) * 1.01 + 1, resident


def large_then_small() -> list[float]:
    """On a rank: shared MiB before, after a large picture, and after a small one."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    shared = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for side in (8, 96, 8, 8):
            unet.begin(DistriConfig(warmup_steps=1, split_batch=False))
            for step in range(3):
                unet(**sdxl_inputs(2, side, side), timestep=900 - 100 * step)
            unet.end()
            shared.append(psutil.Process().memory_info().shared / _MIB)
    return shared


def test_the_buffers_of_a_large_picture_go_away_for_a_small_one() -> None:
    for before, large, _, small in run_on_ranks(2, large_then_small):
        assert large - before > 10  # it does take memory
        assert small - before < 0.2 * (large - before)
