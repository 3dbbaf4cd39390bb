"""Memory over many pictures: buffers serve again for the same shape and go away for another, and nothing piles up."""

from __future__ import annotations

import gc
from statistics import median
from typing import Any

import psutil
import pytest
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


def many_pictures(rounds: int) -> list[float]:
    """On a rank: MiB after every round of SHAPES: resident memory, or on a GPU the peak that was allocated."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    memory = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        gpu = mesh.device.type == "cuda"
        unet = ParallelUNet(tiny_sdxl_unet().to(mesh.device), DistriConfig(), mesh)
        for _ in range(rounds):
            if gpu:
                torch.cuda.reset_peak_memory_stats(mesh.device)
            for rows, columns, batch, how in SHAPES:
                unet.begin(DistriConfig(**{"warmup_steps": 1, "split_batch": False, **how}))
                for step in range(4):
                    unet(**on(mesh.device, sdxl_inputs(batch, rows, columns)), timestep=900 - 100 * step)
                unet.end()
            used = torch.cuda.max_memory_allocated(mesh.device) if gpu else psutil.Process().memory_info().rss
            memory.append(used / _MIB)
    return memory


def on(device: torch.device, value: Any) -> Any:
    """Tensors, also those in a dictionary, on `device`."""
    if isinstance(value, dict):
        return {name: on(device, part) for name, part in value.items()}
    return value.to(device)


def test_fifty_pictures_of_changing_shapes_need_no_more_than_the_first_ten() -> None:
    for memory in run_on_ranks(2, many_pictures, 10):
        print("MiB after every five pictures:", *(f"{value:.0f}" for value in memory))
        assert median(memory[5:]) <= max(memory[:2]) * 1.01 + 1, memory


def held(unet: Any) -> int:
    """Bytes of storage behind the slots of `unet`, behind every message in this process, and on this rank's board."""
    from distri_engine.boards import BoardBucket
    from distri_engine.buckets import Bucket
    from distri_engine.ledger import Ledger

    gc.collect()
    buckets = [thing for thing in gc.get_objects() if type(thing) is Bucket]
    tensors = [view for bucket in buckets for views in bucket._outbox.values() for view in views]
    for slot in unet._exchange._slots:
        tensors += [*(() if slot.borrowed else slot.received.values()), *slot.sent, *slot.moved, *slot.ahead]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    boards = [thing for thing in gc.get_objects() if type(thing) in (BoardBucket, Ledger)]
    return sum(storages.values()) + sum(size for board in boards for _, size in board._places)


def held_and_counted(boards: bool) -> list[tuple[int, int]]:
    """On a rank: both figures after pictures of one size by other modes, and with another batch."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh
    from distri_engine.mesh import Mesh

    modes = ("corrected_async_gn", "separate_gn", "full_sync", "extrapolated", "stale_gn", "no_sync")
    results = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        mesh = mesh if boards else Mesh.of_default_group(mesh.device, shared_memory=False)
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for mode, batch in zip(modes, (4, 4, 2, 2, 2, 2), strict=True):
            unet.begin(DistriConfig(mode=mode, warmup_steps=0, split_batch=False))
            for step in range(3):
                unet(**sdxl_inputs(batch, 16, 16), timestep=900 - 100 * step)
            results.append((held(unet), unet.buffer_bytes()))
            unet.end()
    return results


@pytest.mark.parametrize("boards", [True, False])
def test_what_is_held_is_what_is_counted(boards: bool) -> None:
    for results in run_on_ranks(2, held_and_counted, boards):
        for holds, counted in results:
            assert counted <= holds <= 1.05 * counted + 30_000, results  # payloads in a message are padded to 64 bytes


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
        assert large - before > 5  # it does take memory
        assert small - before < 0.2 * (large - before)
