"""Displaced patches come near to one device, extrapolated ones nearer, naive ones do not. README's tables are made by
tests/support/likeness.py.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.support.likeness import likeness

MODES = ("corrected_async_gn", "stale_gn", "extrapolated")


def test_extrapolated_is_nearer_to_one_device(measured: Callable[[str], None]) -> None:
    rows = likeness(4, [{"mode": mode} for mode in MODES], prompts=2, steps=20, timed=False)
    for mode, row in zip(MODES, rows, strict=True):
        measured(f"PSNR of the final latents, 4 ranks, 20 steps, {mode}: {row.median:.1f} dB, worst {row.worst:.1f} dB")
    corrected, stale, extrapolated = rows
    assert extrapolated.median > max(corrected.median, stale.median) + 2
    assert extrapolated.worst > max(corrected.worst, stale.worst) + 1


def test_naive_patches_are_not_near(measured: Callable[[str], None]) -> None:
    displaced, naive = likeness(2, [{}, {"parallelism": "naive_patch"}], prompts=2, steps=20, timed=False)
    measured(f"2 ranks, 20 steps: displaced patches {displaced.median:.1f} dB, naive patches {naive.median:.1f} dB")
    assert displaced.median > 40
    assert naive.median < 25
