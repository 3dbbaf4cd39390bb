"""Each patched layer alone against its plain twin, on uneven bands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distri_engine.bands import cut_rows
from tests.support.gang import run_on_ranks
from tests.support.models import relative

HEIGHT, WIDTH, UNIT = 28, 12, 4  # 7 units: 3 ranks own 12, 8 and 8 rows, 4 ranks 8, 8, 8 and 4


def convolutions() -> list[nn.Conv2d]:
    torch.manual_seed(0)
    return [
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Conv2d(8, 6, 3, padding=1, stride=2),
        nn.Conv2d(8, 6, 5, padding=2, bias=False),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(8, 6, (3, 1), padding=(1, 0)),
    ]


def norms() -> list[nn.GroupNorm]:
    torch.manual_seed(1)
    made = [nn.GroupNorm(4, 8), nn.GroupNorm(8, 8, eps=1e-6), nn.GroupNorm(2, 8, affine=False)]
    for norm in made[:2]:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return made


def picture(scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    """[2, 8, HEIGHT, WIDTH]"""
    return torch.randn(2, 8, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) * scale + offset


def run_layers() -> dict[str, list[torch.Tensor]]:
    """On a rank: its rows of every layer's output."""
    from distri_engine import DistriConfig, open_mesh
    from distri_engine.exchange import Exchange
    from distri_engine.layers.patch_attention import GatheredProjection
    from distri_engine.layers.patch_conv import PatchConv2d, SlicedConv2d, halo_rows
    from distri_engine.layers.patch_norm import PatchGroupNorm
    from distri_engine.step import StepClock

    config = DistriConfig(mode="full_sync", split_batch=False)
    with torch.no_grad(), open_mesh(config) as mesh:
        clock = StepClock()
        exchange = Exchange(mesh, clock)
        clock.begin(None)
        clock.tick()
        boxes = cut_rows(HEIGHT, WIDTH, UNIT, mesh.size)
        exchange.begin(config, mesh.axes(config, guided=False), boxes)
        mine = boxes[mesh.rank]

        def rows(x: torch.Tensor) -> torch.Tensor:
            return x[:, :, mine.top : mine.bottom]

        x, tokens = picture(), picture().flatten(2).transpose(1, 2)
        own_tokens = tokens[:, mine.top * WIDTH : mine.bottom * WIDTH]
        torch.manual_seed(3)
        linear = nn.Linear(8, 5)
        return {
            "conv": [PatchConv2d(conv, exchange.halo(*halo_rows(conv)))(rows(x)) for conv in convolutions()],
            "conv_in": [SlicedConv2d(conv, exchange)(x) for conv in convolutions()[:1]],
            "norm": [PatchGroupNorm(norm, exchange.stats())(rows(x)) for norm in norms()],
            "far": [PatchGroupNorm(norms()[0], exchange.stats())(rows(picture(0.1, 30.0)))],
            "half": [PatchGroupNorm(norms()[2], exchange.stats())(rows(picture(300.0).half()))],
            "tokens": [PatchGroupNorm(norms()[0], exchange.stats())(own_tokens.transpose(1, 2))],
            "gather": [GatheredProjection(linear, exchange.gather())(own_tokens)],
            "stale": stale_norms(mesh),
        }


def stale_norms(mesh: Any) -> list[torch.Tensor]:
    """On a rank: its rows of a norm's output in a stale step whose input is new, by sync_gn and by stale_gn."""
    from distri_engine import DistriConfig
    from distri_engine.exchange import Exchange
    from distri_engine.layers.patch_norm import PatchGroupNorm
    from distri_engine.step import StepClock

    outputs = []
    for mode in ("sync_gn", "stale_gn"):
        config, clock = DistriConfig(mode=mode, split_batch=False), StepClock()
        exchange = Exchange(mesh, clock)
        boxes = cut_rows(HEIGHT, WIDTH, UNIT, mesh.size)
        exchange.begin(config, mesh.axes(config, guided=False), boxes)
        clock.begin(0)
        norm, mine = PatchGroupNorm(norms()[0], exchange.stats()), boxes[mesh.rank]
        for x in (picture(), picture(2.0, 1.0)):
            clock.tick()
            exchange.start_step()
            output = norm(x[:, :, mine.top : mine.bottom])
            exchange.finish_step()
        exchange.drain()
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("world", [1, 3, 4])
def test_layers_equal_their_plain_twins(world: int) -> None:
    ranks = run_on_ranks(world, run_layers)
    x, tokens = picture(), picture().flatten(2).transpose(1, 2)

    def met(name: str, index: int, dim: int = 2) -> torch.Tensor:
        return torch.cat([rank[name][index] for rank in ranks], dim=dim)

    with torch.no_grad():
        for index, conv in enumerate(convolutions()):
            assert relative(met("conv", index), conv(x)) < 1e-6, conv
        assert relative(met("conv_in", 0), convolutions()[0](x)) < 1e-6
        for index, norm in enumerate(norms()):
            assert relative(met("norm", index), norm(x)) < 1e-6, norm
        # A mean 300 times the deviation: float32 moments would lose three digits here.
        assert relative(met("far", 0), norms()[0](picture(0.1, 30.0).double().float())) < 1e-4
        # Squares of float16 numbers of this size are infinite in float16.
        half = met("half", 0)
        assert half.dtype == torch.float16
        assert relative(half, norms()[2](picture(300.0).half().float())) < 1e-3
        assert relative(met("tokens", 0), norms()[0](tokens.transpose(1, 2))) < 1e-6
        fresh = norms()[0](picture(2.0, 1.0))
        assert relative(met("stale", 0), fresh) < 1e-6  # sync_gn: moments are fresh in stale steps, too
        assert (relative(met("stale", 1), fresh) < 1e-6) == (world == 1)
        torch.manual_seed(3)
        expected = nn.Linear(8, 5)(tokens)
        for rank in ranks:
            assert relative(rank["gather"][0], expected) < 1e-6


def fallen_variance(before: float, peers: list[float]) -> list[list[float]]:
    """On a rank: by shared memory and by messages, the variance that corrected_async_gn takes for a picture whose upper
    rows had the variance `before` one step ago and have 1 now; the lower rows keep one of `peers`.
    """
    from distri_engine import DistriConfig, open_mesh
    from distri_engine.exchange import Exchange
    from distri_engine.layers.patch_norm import PatchGroupNorm
    from distri_engine.mesh import Mesh
    from distri_engine.step import StepClock

    config, signs = DistriConfig(split_batch=False), torch.tensor([1.0, -1.0]).repeat(1, 2, 4, 4)  # mean 0, variance 1
    found: list[list[float]] = []
    with torch.no_grad(), open_mesh(config) as mesh:
        for way in (mesh, Mesh.of_default_group(mesh.device, shared_memory=False)):
            found.append([])
            for peer in peers:
                clock = StepClock()
                exchange = Exchange(way, clock)
                exchange.begin(config, way.axes(config, guided=False), cut_rows(8, 8, 4, way.size))
                clock.begin(1)
                norm = PatchGroupNorm(nn.GroupNorm(1, 2, eps=0, affine=False), exchange.stats())
                for variance in (before, before, before, 1.0):  # two synchronous steps, then two stale ones
                    clock.tick()
                    exchange.start_step()
                    own = signs * (peer if mesh.rank else variance) ** 0.5
                    made = norm(own)
                    exchange.finish_step()
                    torch.distributed.barrier()  # as the ranks' outputs meet at the end of a step
                exchange.drain()
                found[-1].append(float((own / made).square().mean()))
    return found


def test_a_correction_leaves_no_impossible_variance() -> None:
    """One that falls below what the own half of the rows accounts for by itself; the average of 1 now and the peer's
    stands in. From 12 to 2 as the paper has it, 8.5 would become 0.25, and 2 less than zero.
    """
    (shared, messages), (lower, lower_messages) = run_on_ranks(2, fallen_variance, 10.0, [12.0, 8.5, 2.0])
    assert shared == pytest.approx([2.0, 4.75, 1.5], rel=1e-5)
    assert messages == pytest.approx(shared, rel=1e-5)
    # The lower rows do not know yet, and have not changed.
    assert lower == pytest.approx([11.0, 9.25, 6.0], rel=1e-5)
    assert lower_messages == pytest.approx(lower, rel=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (2.0, 5.0), (300.0, 0.0), (0.0, 50.0), (0.1, 30.0)])
def test_moments_of_stale_steps(scale: float, shift: float) -> None:
    from distri_engine.layers.patch_norm import moments, quick_moments
    from distri_engine.ledger import Desk, Page

    x = picture(scale, shift)
    flat = x.double().reshape(x.shape[0], 4, -1)
    exact = torch.stack([flat.mean(-1), flat.square().mean(-1)])
    for function in (moments, quick_moments):
        mean, square = own = function(x, 4)
        assert relative(own, exact) < 1e-6
        assert (square - mean * mean >= 0).all()  # also of a constant picture
    sums = torch.empty(exact.shape)
    page = Page(Desk(exact.shape), sums, *torch.zeros(2, *exact.shape))
    mean, variance = page.combine(x).squeeze(-1)
    assert relative(torch.stack([sums[0], sums[1].square() / page.count]), exact) < 1e-6
    assert relative(mean, exact[0]) < 1e-6
    spread = exact[1] - exact[0] ** 2
    assert float((variance - spread).abs().max()) < 1e-6 * float(exact[1].max())
    assert (variance >= 0).all()
    half = quick_moments(x.half(), 4)
    assert half.dtype == torch.float64
    assert relative(half, exact) < 1e-3


def test_changed_weights_are_seen_when_a_step_begins() -> None:
    from distri_engine.exchange import Exchange
    from distri_engine.layers.patch_norm import PatchGroupNorm
    from distri_engine.ledger import Desk, Page
    from distri_engine.mesh import Mesh
    from distri_engine.step import StepClock

    norm, x = nn.GroupNorm(4, 8), torch.randn(2, 8, 6, 5)
    slot = Exchange(Mesh(0, 1, torch.device("cpu")), StepClock()).stats()
    layer, sums = PatchGroupNorm(norm, slot), torch.zeros(2, 2, 4)
    assert slot.ready is not None
    with torch.no_grad():
        for batch in (x, x, x * 3 + 1):  # the second time weights are others, in place
            slot.page = Page(Desk((2, 2, 4)), sums, *torch.zeros(2, 2, 2, 4))
            slot.ready()  # as the ledger calls it
            assert relative(layer(batch), norm(batch)) < 1e-6
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()


def test_text_projection_is_computed_once_a_picture() -> None:
    from distri_engine.layers.once import Once
    from distri_engine.step import StepClock

    calls = []

    def project(text: torch.Tensor) -> torch.Tensor:
        calls.append(text)
        return text * 2

    clock = StepClock()
    clock.begin(None)
    layer, text = Once(project, clock), torch.ones(1, 7, 4)
    assert torch.equal(layer(text), text * 2)
    assert torch.equal(layer(text), text * 2)
    assert len(calls) == 1
    text += 1  # a callback that edits the embeddings in place
    assert torch.equal(layer(text), text * 2)
    assert torch.equal(layer(text.clone()), text * 2)
    clock.begin(None)
    assert torch.equal(layer(text), text * 2)
    assert len(calls) == 4
