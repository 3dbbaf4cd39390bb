"""Links between ranks of one host: the same bytes as the collective path, in any order, and no hanging on a dead
peer.
"""

from __future__ import annotations

import os
import time

import pytest
import torch

from tests.support.gang import run_on_ranks
from tests.support.models import relative, sdxl_inputs, tiny_sdxl_unet


def storm(rounds: int) -> bool:
    """On a rank: many messages of many sizes and types, joined late and out of order."""
    from distri_engine import DistriConfig, open_mesh

    with open_mesh(DistriConfig()) as mesh:
        peers = [rank for rank in range(mesh.size) if rank != mesh.rank]
        flying = []
        for index in range(rounds):
            shape = (1 + (index * 37) % 5000,)
            dtype = (torch.float32, torch.float64, torch.uint8, torch.float16)[index % 4]
            sends = {peer: torch.full(shape, (index + mesh.rank) % 100, dtype=dtype) for peer in peers}
            receives = {peer: torch.empty(shape, dtype=dtype) for peer in peers}
            flying.append((index, mesh.swap(sends, receives), receives))
            if index % 3 == 2:
                flying.reverse()
                while len(flying) > 40:
                    check(*flying.pop())
        for item in flying:
            check(*item)
        return True


def check(index: int, pending: object, receives: dict[int, torch.Tensor]) -> None:
    pending.wait()  # type: ignore[attr-defined]
    pending.wait()  # type: ignore[attr-defined]  # harmless
    for peer, tensor in receives.items():
        assert (tensor == (index + peer) % 100).all()


def test_messages_arrive_whole_in_any_order() -> None:
    assert run_on_ranks(3, storm, 600) == [True] * 3


def one_sided(count: int) -> float:
    """On a rank: rank 0 sends more tokens than the socket holds before anybody reads, rank 1 likewise."""
    from distri_engine import DistriConfig, open_mesh

    with open_mesh(DistriConfig()) as mesh:
        into = [torch.empty(10) for _ in range(count)]
        flying = [
            mesh.swap({1 - mesh.rank: torch.full((10,), float(i))}, {1 - mesh.rank: into[i]}) for i in range(count)
        ]
        for pending in flying:
            pending.wait()
        return float(sum(tensor.sum() for tensor in into))


def test_full_sockets_do_not_deadlock() -> None:
    assert run_on_ranks(2, one_sided, 2000) == [10 * sum(range(2000))] * 2


def both_transports(steps: int, modes: list[str]) -> list[list[torch.Tensor]]:
    """On a rank: displaced pictures over shared memory and over the process group."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh
    from distri_engine.mesh import Mesh

    config = DistriConfig(warmup_steps=1, split_batch=False, comm_checkpoint=11)
    outputs = []
    with torch.no_grad(), open_mesh(config) as mesh:
        assert mesh._links is not None
        meshes = (mesh, Mesh.of_default_group(mesh.device, shared_memory=False))
        unets = [ParallelUNet(tiny_sdxl_unet(), config, other) for other in meshes]
        for mode in modes:
            outputs.append([])
            for unet in unets:
                unet.begin(config.replace(mode=mode))
                for step in range(steps):
                    inputs = sdxl_inputs(2, 16, 16)
                    inputs["sample"] = inputs["sample"] * (1 - 0.1 * step)  # type: ignore[operator]
                    output = unet(**inputs, timestep=900 - 100 * step).sample
                unet.end()
                outputs[-1].append(output)
    return outputs


def test_both_transports_give_the_same_picture() -> None:
    modes = ["corrected_async_gn", "stale_gn", "extrapolated"]
    for pictures in run_on_ranks(3, both_transports, 5, modes):
        for mode, (shared, collective) in zip(modes, pictures, strict=True):
            # Moments are summed up in another order, in float64.
            assert relative(shared, collective) < 1e-6, mode
        assert relative(pictures[0][0], pictures[1][0]) > 1e-6  # modes are others


def dying(who: int) -> float:
    """On a rank: `who` hangs up in the middle; the others say how long they waited for it."""
    from distri_engine import DistriConfig, MeshError, open_mesh

    with open_mesh(DistriConfig()) as mesh:
        if mesh.rank == who:
            time.sleep(0.5)
            mesh.close()
            return 0.0
        start = time.perf_counter()
        with pytest.raises(MeshError, match=f"rank {who} is gone"):
            mesh.swap({who: torch.ones(4)}, {who: torch.empty(4)}).wait()
        return time.perf_counter() - start


def test_a_peer_that_hangs_up_is_noticed() -> None:
    waits = run_on_ranks(3, dying, 1)
    assert 0 < waits[0] < 30
    assert 0 < waits[2] < 30


def at_odds() -> None:
    """On a rank: rank 1 is in another call than rank 0, as after an error that it alone had."""
    from distri_engine import DistriConfig, MeshError, open_mesh

    with open_mesh(DistriConfig()) as mesh:
        other = 1 - mesh.rank
        sent, expected = torch.ones(4 + mesh.rank), torch.empty(4 + mesh.rank)
        with pytest.raises(MeshError, match=rf"^rank {other} sent \d+ bytes where \d+ were expected: .* start the"):
            mesh.swap({other: sent}, {other: expected}).wait()


def test_ranks_in_different_calls_are_one_sentence() -> None:
    run_on_ranks(2, at_odds)


def descriptors(pictures: int) -> tuple[int, int]:
    """On a rank: open files after the first pictures and after many more."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    counts = []
    config = DistriConfig(warmup_steps=0, split_batch=False)
    with torch.no_grad(), open_mesh(config) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), config, mesh)
        for picture in range(pictures):
            unet.begin()
            for _ in range(3):
                unet(**sdxl_inputs(2, 8 + 4 * (picture % 3), 16), timestep=500)
            unet.end()
            if picture in (5, pictures - 1):
                counts.append(len(os.listdir("/proc/self/fd")))
    return counts[0], counts[1]


def test_no_descriptor_is_leaked() -> None:
    for early, late in run_on_ranks(2, descriptors, 12):
        assert late == early


def groups_one_after_another(turns: int) -> list[list[float]]:
    """On a rank: join and leave, every time with another rank that is late in leaving."""
    from distri_engine import DistriConfig, open_mesh

    sums = []
    for turn in range(turns):
        with open_mesh(DistriConfig()) as mesh:
            mine = torch.full((3,), float(mesh.rank + turn))
            sums.append(mesh.all_reduce(mine, range(mesh.size)).tolist())
            if mesh.rank == turn % mesh.size:
                time.sleep(0.5)
    return sums


def test_a_rank_that_leaves_late_does_not_spoil_the_next_group() -> None:
    """The early rank knocks where the late one still keeps the last group's addresses."""
    expected = [[1.0] * 3, [3.0] * 3, [5.0] * 3]
    assert run_on_ranks(2, groups_one_after_another, 3) == [expected, expected]
