"""What a picture costs: the paper's figures for SDXL, and the messages of real ranks, byte by byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from distri_engine.bands import split_units
from distri_engine.config import DistriConfig, Parallelism
from distri_engine.evaluation.comm import CountingMesh, Traffic
from distri_engine.evaluation.machine import Machine, picture_seconds
from distri_engine.evaluation.models import unet_inputs, unet_on_meta
from distri_engine.evaluation.profile import CountedUNet, Profile, RankCost, StepCost, profile
from distri_engine.step import Phase
from tests.support.gang import run_on_ranks
from tests.support.models import DEMO_MODEL, sdxl_inputs, tiny_sdxl_unet

TERA, GIGA = 1e12, 1e9
TOGETHER = DistriConfig(split_batch=False)  # both guidance branches in the batch


@pytest.fixture(scope="module")
def sdxl() -> UNet2DConditionModel:
    return unet_on_meta("sdxl", torch.float16)


def test_macs_of_the_paper(sdxl: UNet2DConditionModel) -> None:
    """1280 x 1920, 50 steps: 907 T on one device; on four 190 T for naive patches and 227 T for DistriFusion."""
    one, naive, patch = (
        profile(sdxl, TOGETHER.replace(parallelism=name), ranks, size=(160, 240), steps=50, guided=True)
        for name, ranks in (("single", 1), ("naive_patch", 4), ("patch", 4))
    )
    assert one.busiest.macs / TERA == pytest.approx(907.2, abs=0.05)
    assert naive.busiest.macs / TERA == pytest.approx(190.1, abs=0.05)
    # A quarter of everything is 226.8. Every rank projects the text, whole, but once a picture instead of 50 times.
    assert patch.busiest.macs == patch.least.macs
    assert patch.busiest.macs / TERA == pytest.approx(226.8, rel=3e-3)
    first, warm, stale = patch.busiest.steps
    assert (first.times, warm.times, stale.times) == (1, 4, 45)
    assert warm.macs == stale.macs
    assert warm.traffic == stale.traffic
    text = first.macs - warm.macs
    assert text == 2 * 77 * 2048 * 2 * (10 * 640 + 60 * 1280)  # a batch of 2, keys and values of 10 and of 60 layers
    assert patch.busiest.macs == pytest.approx((one.busiest.macs - 50 * text) / 4 + text, rel=1e-5)
    assert patch.weights == 2 * 2_567_463_684


def halos_of_the_original(unet: UNet2DConditionModel, rows: int, cols: int) -> int:
    """Elements of both boundary rows of every convolution's input but the first's: what the original gathers."""
    elements = []

    def note(conv: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1) and conv is not unet.conv_in:
            batch, channels, _, width = inputs[0].shape
            elements.append(batch * channels * 2 * conv.padding[0] * width)

    hooks = [conv.register_forward_pre_hook(note) for conv in unet.modules() if isinstance(conv, nn.Conv2d)]
    with torch.no_grad():
        unet(**unet_inputs(unet, 2, rows, cols))
    for hook in hooks:
        hook.remove()
    return sum(elements)


@pytest.mark.parametrize(
    ("side", "published", "ours"), [(1024, 0.424, 0.3751), (2048, 1.583, 1.4841), (3840, 5.376, 5.1911)]
)
def test_elements_that_one_of_eight_ranks_receives(
    sdxl: UNet2DConditionModel, side: int, published: float, ours: float
) -> None:
    """The paper's "Comm.": keys and values, halos and moments, both branches in the batch. The original sends every
    halo to everybody; here it goes to the neighbours only.
    """
    counted = profile(sdxl, TOGETHER, 8, size=(side // 8, side // 8), steps=1, guided=True)
    kinds = {kind: traffic.elements for kind, traffic in counted.loudest.steps[-1].traffic.items()}
    original = kinds["gather"] + kinds["stats"] + 7 * halos_of_the_original(sdxl, side // 8, side // 8)
    assert original / GIGA == pytest.approx(published, abs=0.0006)
    assert counted.loudest.steps[-1].comm_of_the_original == original
    assert (kinds["gather"] + kinds["stats"] + kinds["halo"]) / GIGA == pytest.approx(ours, abs=0.0001)
    # 70 layers' keys and values of 7/8 of the picture, by hand.
    tokens = (side // 16) ** 2
    assert kinds["gather"] == 2 * 2 * (10 * tokens * 640 + 60 * (tokens // 4) * 1280) * 7 // 8
    assert kinds["output"] == 2 * 4 * (side // 8) ** 2 * 7 // 8


def test_elements_of_tensor_parallelism(sdxl: UNet2DConditionModel) -> None:
    """The paper's 1.33 G at 1024 on 8 devices: sums over all ranks inside layers, both branches in the batch."""
    config = TOGETHER.replace(parallelism=Parallelism.TENSOR)
    counted = profile(sdxl, config, 8, size=(128, 128), steps=1, guided=True)
    assert counted.loudest.steps[-1].comm == 1_332_674_560


@pytest.mark.parametrize("ranks", [1, 3, 7, 31, 64])
def test_macs_of_any_number_of_ranks_add_up(ranks: int) -> None:
    """To those of one device, and what every rank does by itself: the text's keys and values, once a picture, and what
    follows from timestep and size, at every step.
    """
    unet, steps = unet_on_meta(str(DEMO_MODEL), torch.float32), 8
    size, inputs = (256, 32), unet_inputs(unet, 2, 256, 32)
    linear = {name: 2 * one.weight.numel() for name, one in unet.named_modules() if isinstance(one, nn.Linear)}
    tokens = inputs["encoder_hidden_states"].shape[1]
    text = sum(tokens * macs for name, macs in linear.items() if name.endswith(("attn2.to_k", "attn2.to_v")))
    time = sum(macs for name, macs in linear.items() if "embedding.linear" in name or "time_emb_proj" in name)
    alone = DistriConfig(parallelism=Parallelism.SINGLE)
    one = profile(unet, alone, 1, size=size, steps=steps, guided=True).busiest.macs
    counted = profile(unet, TOGETHER, ranks, size=size, steps=steps, guided=True)
    bands = split_units(size[0] // 4, ranks)
    kinds = [next(cost for cost in counted.costs if bands[cost.rank] == band) for band in bands]
    assert sum(cost.macs for cost in kinds) == one - steps * (text + time) + ranks * (text + steps * time)


DISPLACED: dict[str, Any] = {"mode": "corrected_async_gn", "split_batch": False, "comm_checkpoint": 7}
OTHERS: list[dict[str, Any]] = [
    {"mode": "sync_gn", "split_batch": False},
    {"mode": "separate_gn", "split_batch": False},
    {"mode": "no_sync", "split_batch": False},
    {"mode": "full_sync"},  # and split_batch
    {"parallelism": "naive_patch", "split_batch": False},
]
STEPS = 4


def messages(configs: list[dict[str, Any]]) -> tuple[list[list[int]], list[dict[str, int]], list[dict[str, int]]]:
    """On a rank: bytes sent in every step of every config, the buffers after it, and those of three slots by hand."""
    from distri_engine import ParallelUNet, open_mesh
    from distri_engine.bands import cut_rows
    from distri_engine.exchange import Exchange
    from distri_engine.mesh import Mesh
    from distri_engine.step import StepClock

    sent, buffers, by_hand = [], [], []
    with torch.no_grad(), open_mesh(TOGETHER) as mesh:
        mesh = Mesh.of_default_group(mesh.device, shared_memory=False)  # on one host, there would be no messages
        unet = ParallelUNet(tiny_sdxl_unet(), TOGETHER, mesh)
        for config in configs:
            unet.begin(DistriConfig(warmup_steps=1, **config))
            steps = []
            for _ in range(STEPS):
                mesh.meter.reset()
                unet(**sdxl_inputs(2, 16, 8), timestep=500)
                steps.append(mesh.meter.sent_bytes)
            sent.append(steps)
            buffers.append(unet._exchange.buffer_bytes())
            unet.end()
            unet.forget()  # buffers serve the next picture, too, whatever its mode

        exchange = Exchange(mesh, StepClock())
        halo, gather, stats = exchange.halo(1, 1), exchange.gather(), exchange.stats()
        exchange.clock.begin(0)
        exchange.begin(TOGETHER, mesh.axes(TOGETHER, guided=True), cut_rows(4 * mesh.size, 6, 4, mesh.size))
        for _ in range(2):  # one synchronous step, one stale
            exchange.clock.tick()
            exchange.start_step()
            halo.trade(torch.zeros(1, 8, 4, 6))
            gather.trade(torch.zeros(1, 24, 5, dtype=torch.float16))
            stats.trade(torch.zeros(2, 1, 3, dtype=torch.float64))
            exchange.finish_step()
            by_hand.append(exchange.buffer_bytes())
        exchange.drain()
        by_hand.append((exchange.forget(), exchange.buffer_bytes())[1])
    return sent, buffers, by_hand


@pytest.mark.parametrize(
    ("world", "configs"), [(2, [DISPLACED, *OTHERS]), (3, [DISPLACED])]
)  # 3: bands of 8, 4, 4 rows
def test_counted_messages_are_those_of_real_ranks(world: int, configs: list[dict[str, Any]]) -> None:
    unet = tiny_sdxl_unet().to("meta")
    for rank, (sent, buffers, by_hand) in enumerate(run_on_ranks(world, messages, configs)):
        for config, real, held in zip(configs, sent, buffers, strict=True):
            counted = CountedUNet(unet, DistriConfig(warmup_steps=1, **config), CountingMesh(rank, world))
            cost = counted.picture(unet_inputs(unet, 2, 16, 8), STEPS, guided=True)
            expected = [step.total.sent for step in cost.steps for _ in range(step.times)]
            assert real == expected, (rank, config)
            assert held == cost.buffers, (rank, config)
        neighbours, peers = 2 if rank == 1 and world == 3 else 1, world - 1
        row, keys, moments = 8 * 6 * 4, 24 * 5 * 2, 2 * 3 * 8
        received = {"halo": neighbours * row, "gather": peers * keys, "stats": peers * moments}
        outgoing = {"halo": neighbours * row, "gather": keys, "stats": moments}
        both = {kind: received[kind] + outgoing[kind] for kind in received}
        assert by_hand == [received, both, {"halo": 0, "gather": 0, "stats": 0}]


def test_alternating_patches_cost_what_rows_and_columns_do() -> None:
    unet = tiny_sdxl_unet().to("meta")

    def naive(scheme: str, steps: int) -> Profile:
        config = DistriConfig(parallelism=Parallelism.NAIVE_PATCH, split_scheme=scheme, split_batch=False)
        return profile(unet, config, 3, size=(20, 16), steps=steps, guided=True)

    rows, cols, both = naive("row", 1), naive("col", 1), naive("alternate", 5)
    assert rows.busiest.macs > rows.least.macs  # bands of 8, 8 and 4 rows
    assert len(both.costs) == 3  # 8 x 8, 8 x 4 and 4 x 4: rows in even steps, columns in odd ones
    assert both.busiest.macs == 3 * rows.busiest.macs + 2 * cols.busiest.macs
    assert both.least.macs == 3 * rows.least.macs + 2 * cols.least.macs


def test_seconds_by_hand() -> None:
    def cost(times: int, phase: Phase, macs: int, waited: int, overlapped: int) -> StepCost:
        return StepCost(
            times=times,
            phase=phase,
            macs=macs,
            moved=10**9,
            operations=10**9,
            waited={"gather": Traffic(received=waited, sent=1), "output": Traffic(received=5, sent=9)},
            overlapped={"gather": Traffic(received=1, sent=overlapped)},
            halos_of_the_original=0,
        )

    ranks = (
        RankCost(rank=0, steps=(cost(2, Phase.SYNC, 50, 30, 0), cost(3, Phase.STALE, 50, 1, 400)), buffers={}),
        RankCost(rank=1, steps=(cost(2, Phase.SYNC, 90, 30, 0), cost(3, Phase.STALE, 90, 1, 100)), buffers={}),
    )
    made = Profile(config=DistriConfig(), ranks=2, branches=1, costs=ranks, weights=0)
    # 10 FLOP/s, 10 bytes/s: warm-up 2 * 90 / 10 + 35 / 10, computed; stale 400 / 10 under way, then 10 / 10.
    assert picture_seconds(made, Machine(flops=10, bandwidth=10)) == pytest.approx(2 * (18 + 3.5) + 3 * (40 + 1.0))
