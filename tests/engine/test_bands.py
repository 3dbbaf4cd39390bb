"""Cutting a picture into bands: any rank count, any size, and clear refusals."""

from __future__ import annotations

from itertools import pairwise

import pytest

from distri_engine.bands import Box, check_bands, cut_cols, cut_rows, patch_ranks, split_units
from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest


@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("height", [256, 512, 832, 1024, 1216, 1344, 1280, 3840])
def test_bands_cover_the_picture_and_differ_by_at_most_one_unit(ranks: int, height: int) -> None:
    boxes = cut_rows(height // 8, 40, 4, ranks)
    assert boxes[0].top == 0
    assert boxes[-1].bottom == height // 8
    assert all(above.bottom == below.top for above, below in pairwise(boxes))
    rows = [box.rows for box in boxes]
    assert all(count % 4 == 0 for count in rows)
    assert max(rows) - min(rows) <= 4
    assert all((box.left, box.right) == (0, 40) for box in boxes)


def test_columns_are_rows_turned() -> None:
    assert cut_cols(8, 28, 4, 3) == (Box(0, 8, 0, 12), Box(0, 8, 12, 20), Box(0, 8, 20, 28))
    assert Box(4, 8, 0, 16).pixels(8) == (0, 32, 128, 64)


def test_too_many_ranks_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="5 ranks cannot share 4 units"):
        split_units(4, 5)
    request = GenerationRequest(prompt="x", height=128, width=512)
    config = DistriConfig(split_batch=False)
    with pytest.raises(
        ValueError,
        match=r"5 ranks cannot share 4 units of rows \(height 128 is 4 x 32 pixels\); "
        r"use at most 4 ranks or a height of at least 160",
    ):
        check_bands(request, config, 5)
    check_bands(request, config, 4)
    check_bands(request, config.replace(parallelism="single"), 8)
    check_bands(request, config.replace(parallelism="naive_patch", split_scheme="col"), 8)
    with pytest.raises(ValueError, match="units of rows"):
        check_bands(request, config.replace(parallelism="naive_patch", split_scheme="alternate"), 8)


def test_guidance_halves_even_groups_only() -> None:
    request = GenerationRequest(prompt="x", guidance_scale=5)
    assert patch_ranks(request, DistriConfig(), 4) == 2
    assert patch_ranks(request, DistriConfig(), 3) == 3
    assert patch_ranks(request, DistriConfig(split_batch=False), 4) == 4
    assert patch_ranks(request.replace(guidance_scale=1), DistriConfig(), 4) == 4
