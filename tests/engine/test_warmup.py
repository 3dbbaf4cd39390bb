"""Adaptive warm-up: it ends where the change of keys and values says, on all ranks after the same step, and from then
on the picture is that of a warm-up of that many steps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from distri_engine.bands import split_units
from tests.support.gang import run_on_ranks
from tests.support.models import sdxl_inputs, tiny_sdxl_unet

HEIGHT, WIDTH, STEPS = 24, 8, 7


def calming_steps() -> list[dict[str, Any]]:
    """Inputs of a picture whose latents move less and less: as 2^-i, at a timestep that stays."""
    first, other = (sdxl_inputs(2, HEIGHT, WIDTH, seed=seed) for seed in (1, 2))
    return [
        first | {"sample": first["sample"] + 2.0**-i * other["sample"], "timestep": 500}  # type: ignore[operator]
        for i in range(STEPS)
    ]


def keys_and_values() -> list[list[torch.Tensor]]:
    """What one device projects in every step: [B, tokens, C] of each layer, in the order of the UNet's modules."""
    unet = tiny_sdxl_unet()
    layers = [
        projection
        for module in unet.modules()
        if isinstance(module, Attention) and not module.is_cross_attention
        for projection in (module.to_k, module.to_v)
    ]
    seen = []
    for inputs in calming_steps():
        step: dict[int, torch.Tensor] = {}
        hooks = [
            layer.register_forward_hook(lambda _, __, output, at=at, step=step: step.update({at: output}))
            for at, layer in enumerate(layers)
        ]
        with torch.no_grad():
            unet(**inputs)
        for hook in hooks:
            hook.remove()
        seen.append([step[at] for at in range(len(layers))])
    return seen


def bands(x: torch.Tensor, ranks: int) -> tuple[torch.Tensor, ...]:
    """x: [B, tokens, C] -> every rank's part of it."""
    shares = [share / (HEIGHT // 4) for share in split_units(HEIGHT // 4, ranks)]
    return x.split([round(share * x.shape[1]) for share in shares], dim=1)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((b - a).norm() / b.norm())


def changes(ranks: int) -> list[float]:
    """The oracle: for every step after the first, the relative change of each band's keys and values, from one device.

    Mean over bands and layers.
    """
    return [
        sum(
            far(a, b)
            for old, new in zip(before, after, strict=True)
            for a, b in zip(bands(old, ranks), bands(new, ranks), strict=True)
        )
        / (len(after) * ranks)
        for before, after in pairwise(keys_and_values())
    ]


def drift(ranks: int, rank: int) -> list[float]:
    """The same of a rank's keys of one layer, every so many tokens."""
    seen = keys_and_values()
    keys = [bands(step[len(step) // 4 * 2], ranks)[rank] for step in seen]
    apart = max(1, keys[0].shape[1] // 64)
    return [far(before[:, ::apart], after[:, ::apart]) for before, after in pairwise(keys)]


def pictures(configs: list[dict[str, Any]]) -> list[tuple[str, list[torch.Tensor], list[float | None]]]:
    """On a rank: (phases, outputs, how far activations moved) of one picture after another."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    results = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for config in configs:
            unet.begin(DistriConfig(**config))
            phases, outputs, moved = "", [], []
            for inputs in calming_steps():
                outputs.append(unet(**inputs).sample)
                phases += unet.clock.step.phase.value[1]  # "y" or "t"
                moved.append(unet.moved())
            unet.end()
            results.append((phases, outputs, moved))
    return results


@pytest.mark.parametrize(("world", "split_batch"), [(2, False), (3, False), (4, True)])
def test_the_warm_up_ends_where_the_change_says(world: int, split_batch: bool) -> None:
    expected = changes(world // 2 if split_batch else world)
    assert expected == sorted(expected, reverse=True)
    threshold = (expected[2] + expected[3]) / 2  # between steps 3 and 4: step 4 is the last synchronous one
    how = [{"mode": mode, "split_batch": split_batch} for mode in ("corrected_async_gn", "extrapolated")]
    configs: list[dict[str, Any]] = [
        c | {"warmup_steps": w, "warmup_threshold": threshold} for c in how for w in ("auto", 4)
    ]
    configs += [how[0] | {"warmup_steps": "auto", "warmup_threshold": limit} for limit in (0.0, 10.0)]
    others = ("sync_gn", "stale_gn", "separate_gn", "no_sync", "full_sync")
    configs += [c | {"mode": mode} for c in configs[:1] for mode in others]
    per_rank = run_on_ranks(world, pictures, configs)
    for rank, results in enumerate(per_rank):
        assert [phases for phases, *_ in results[:4]] == ["yyyyytt"] * 4
        for adaptive, fixed in (results[:2], results[2:4]):
            assert all(torch.equal(a, b) for a, b in zip(adaptive[1], fixed[1], strict=True))
        assert [phases for phases, *_ in results[4:6]] == ["yyyyyyy", "yyttttt"]
        assert [phases for phases, *_ in results[6:]] == ["yyyyytt"] * 4 + ["yyyyyyy"]
        for *_, (first, *others) in results:
            assert first is None
            assert all(0 < moved < 1 for moved in others)  # type: ignore[operator]
        if not split_batch:  # else a rank sees one guidance branch
            assert results[-1][2][1:] == pytest.approx(drift(world, rank), rel=1e-3)


def test_two_ranks_with_a_branch_each_have_nothing_to_wait_for() -> None:
    config = {"warmup_steps": "auto", "warmup_threshold": 0.0, "split_batch": True}
    unet = tiny_sdxl_unet()
    with torch.no_grad():
        plain = [unet(**inputs).sample for inputs in calming_steps()]
    for ((phases, outputs, moved),) in run_on_ranks(2, pictures, [config]):
        assert phases == "yyttttt"
        assert moved == [None] * STEPS  # nobody sees anybody's activations
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, plain, strict=True))
