"""Steps replayed as real CUDA graphs on one GPU. Left out where there is none; `make test ARGS="-m cuda"` runs them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from distri_engine import DistriConfig, ParallelUNet
from distri_engine.mesh import Mesh
from tests.support.models import relative, sdxl_inputs, tiny_sdxl_unet
from tests.support.recorder import EchoMesh

pytestmark = pytest.mark.cuda

STEPS = 6
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}  # libraries may choose other kernels in a capture


def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def alone() -> Mesh:
    return Mesh(0, 1, gpu())


def with_a_peer() -> Mesh:
    return EchoMesh(gpu())


def on_gpu(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: on_gpu(part, dtype) for name, part in value.items()}
    return value.to(gpu(), dtype)


def picture(unet: ParallelUNet, size: tuple[int, int], seed: int, **config: Any) -> list[torch.Tensor]:
    """The outputs of every step, in a batch of both guidance branches."""
    inputs = on_gpu(sdxl_inputs(2, *size, seed=seed), unet.dtype)
    unet.begin(DistriConfig(**{"warmup_steps": 1, "split_batch": False, "comm_checkpoint": 7, **config}))
    made = []
    for step in range(STEPS):
        sample = inputs["sample"] * (1 - 0.07 * step)
        timestep = torch.tensor(900 - 60 * step, device=gpu())
        made.append(unet(**inputs | {"sample": sample, "timestep": timestep}).sample)
    unet.end()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (alone, {"parallelism": "single"}),
        (alone, {"parallelism": "patch"}),
        (with_a_peer, {"parallelism": "naive_patch"}),
        (with_a_peer, {"split_batch": True}),
        (with_a_peer, {"mode": "corrected_async_gn"}),
        (with_a_peer, {"mode": "stale_gn"}),
        (with_a_peer, {"mode": "separate_gn"}),
        (with_a_peer, {"mode": "no_sync"}),
    ],
)
def test_graphs_make_what_layers_make(
    mesh: Callable[[], Mesh], options: dict[str, Any], dtype: torch.dtype, measured: Callable[[str], None]
) -> None:
    model = tiny_sdxl_unet().to(gpu(), dtype)
    replays, runs = (ParallelUNet(model, DistriConfig(), mesh()) for _ in range(2))
    pictures = [((16, 16), 1), ((16, 16), 2), ((24, 16), 1), ((16, 16), 2)]
    worst, equal = 0.0, True
    for size, seed in pictures:
        found = picture(replays, size, seed, **options)
        expected = picture(runs, size, seed, use_cuda_graph=False, **options)
        for ours, layers in zip(found, expected, strict=True):
            assert ours.isfinite().all()
            worst, equal = max(worst, relative(ours.float(), layers.float())), equal and torch.equal(ours, layers)
    assert len(replays._graphs) > 0
    assert not replays._graphs._refused
    assert len(runs._graphs) == 0
    assert worst < TOLERANCE[dtype]
    measured(f"CUDA graphs, {options}, {dtype}: {'the same bits' if equal else f'off by {worst:.1e}'}")


def test_forgetting_gives_memory_back() -> None:
    unet = ParallelUNet(tiny_sdxl_unet().to(gpu()), DistriConfig(), alone())
    picture(unet, (64, 64), 1, use_cuda_graph=False)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        for size in ((64, 64), (64, 32), (32, 64)):
            picture(unet, size, 1)
        assert len(unet._graphs) == 3
        unet.forget()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() - before < 2**25  # libraries keep workspaces of their own


def test_after_a_capture_that_failed_others_succeed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unet = ParallelUNet(tiny_sdxl_unet().to(gpu()), DistriConfig(), with_a_peer())
    expected = picture(unet, (16, 16), 1, use_cuda_graph=False)
    silu = torch.nn.SiLU.forward

    def waiting(self: torch.nn.SiLU, x: torch.Tensor) -> torch.Tensor:
        x.sum().item()  # not permitted in a capture
        return silu(self, x)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(torch.nn.SiLU, "forward", waiting)
        assert relative(picture(unet, (16, 16), 1)[-1], expected[-1]) < 1e-5
    assert ["without a CUDA graph" in record.message for record in caplog.records] == [True]
    assert len(unet._graphs) == 0
    picture(unet, (24, 16), 1)
    assert len(unet._graphs) == 1


def test_other_threads_may_use_the_gpu_meanwhile() -> None:
    """As NCCL's watchdog and the page's previews do."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            torch.ones(1000, device=gpu()).sum().item()
            torch.cuda.Event().query()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        unet = ParallelUNet(tiny_sdxl_unet().to(gpu()), DistriConfig(), with_a_peer())
        for rows in (16, 24, 32):
            picture(unet, (rows, 16), 1)
            assert len(unet._graphs) == 1
    finally:
        over.set()
        thread.join()
