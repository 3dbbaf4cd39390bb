"""Extrapolated displacement comes nearer to one device than the paper's modes. The whole table is made by
tests/support/likeness.py.
"""

from __future__ import annotations

import pytest

from tests.support.likeness import likeness

MODES = ("corrected_async_gn", "stale_gn", "extrapolated")


def test_extrapolated_is_nearer_to_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    rows = likeness(4, [{"mode": mode} for mode in MODES], prompts=4, steps=10, warmup_steps=2)
    with capsys.disabled():
        for mode, row in zip(MODES, rows, strict=True):
            print(
                f"\nPSNR of the final latents, 4 ranks, 10 steps, {mode}: {row.median:.1f} dB, worst {row.worst:.1f} dB"
            )
    corrected, stale, extrapolated = rows
    assert extrapolated.median > max(corrected.median, stale.median) + 2
    assert extrapolated.worst > max(corrected.worst, stale.worst) + 2
