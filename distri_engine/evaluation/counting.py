"""Finds the coefficients of costs.py: runs the engine on the meta device at a few small sizes and rank counts, and
solves for the terms. Counting one picture is profile.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields

import numpy as np
from diffusers import UNet2DConditionModel

from distri_engine.config import DistriConfig, Parallelism, SyncMode
from distri_engine.evaluation.comm import CountingMesh
from distri_engine.evaluation.costs import GUIDANCE, SINGLE, STALE, SYNC, Costs, Share, fingerprint, tensor
from distri_engine.evaluation.machine import Work
from distri_engine.evaluation.models import unet_inputs
from distri_engine.evaluation.profile import CountedUNet

Shapes = Sequence[tuple[int, bool, int, int]]

# (patches, branches, guided, units of rows a band, units of columns): as few and as small as the terms can be told by.
# Lengths of one unit are a single row or column inside the UNet, where some copies are saved.
_BANDS = (
    (2, 1, True, 2, 2), (2, 1, True, 3, 2), (2, 1, True, 2, 4), (2, 1, False, 2, 3), (2, 2, True, 3, 3),
    (3, 1, True, 2, 3), (3, 1, False, 2, 2), (3, 2, True, 2, 4), (4, 1, True, 2, 2), (4, 2, True, 2, 3),
    (4, 1, False, 3, 2), (5, 1, True, 2, 3), (6, 2, True, 2, 2), (7, 1, False, 2, 4),
)  # fmt: skip
# (branches, guided, units of rows, units of columns)
_WHOLE = ((1, True, 2, 2), (1, True, 2, 4), (1, True, 4, 4), (1, False, 2, 2), (1, False, 4, 2))
_APART = ((2, True, 2, 2), (2, True, 2, 4), (2, True, 4, 4))
_ALONE = ("once", "band", "branch band picture")  # of a rank that runs one guidance branch of the whole picture
_BOTH = ("once", "branch", "band", "branch band", "branch band picture")
_ANY = (*_BOTH, "other", "branch other band")
_ALL = tuple(Share(rows=1, cols=1, own=1, patches=1, branches=1, batch=1).terms)


def count_costs(unet: UNet2DConditionModel, mode: SyncMode, tensor_ranks: Iterable[int]) -> Costs:
    """The costs of `unet`, on the meta device: of one device, of displaced patches in `mode` on any number of ranks,
    and of tensor parallelism on each of `tensor_ranks` ranks a guidance branch.

    Raises UnsupportedError or ModelError if the UNet has no form on bands.
    """
    unit = 2 ** (len(unet.config.block_out_channels) - 1)
    patch = DistriConfig(warmup_steps=1, mode=mode)
    single, sharded = (patch.replace(parallelism=name) for name in (Parallelism.SINGLE, Parallelism.TENSOR))

    def picture(patches: int, branches: int, guided: bool, own: int, rows: int, cols: int) -> Share:
        own, rows, cols = unit * own, unit * rows, unit * cols
        return Share(rows=rows, cols=cols, own=own, patches=patches, branches=branches, batch=1 + guided)

    def whole(config: DistriConfig, patches: int, shapes: Shapes, step: int) -> list[tuple[Share, Work]]:
        shares = [picture(patches, branches, guided, rows, rows, cols) for branches, guided, rows, cols in shapes]
        return [(share, steps_of(unet, config, share, (step,))[0]) for share in shares]

    bands = [
        picture(patches, branches, guided, own, own * patches, cols) for patches, branches, guided, own, cols in _BANDS
    ]
    steps = [steps_of(unet, patch, share, (1, 3)) for share in bands]
    families = {
        SINGLE: _solve(whole(single, 1, _WHOLE, 0), _BOTH),
        GUIDANCE: _solve(whole(patch, 1, _APART, 1), _ALONE),
        SYNC: _solve([(share, works[0]) for share, works in zip(bands, steps, strict=True)], _ALL),
        STALE: _solve([(share, works[1]) for share, works in zip(bands, steps, strict=True)], _ALL),
    }
    for patches in sorted(set(tensor_ranks) - {1}):
        families[tensor(patches)] = _solve(whole(sharded, patches, (*_WHOLE, *_APART), 0), _ANY)
    return Costs(
        unet=fingerprint(unet.config),
        unit=unit,
        mode=patch.mode.value,
        dtype=str(unet.dtype).removeprefix("torch."),
        families=families,
    )


def steps_of(unet: UNet2DConditionModel, config: DistriConfig, share: Share, wanted: Sequence[int]) -> list[Work]:
    """The steps of these indices, of a rank with two neighbours if there is one. With a warm-up of 1, displaced patches
    do in step 1 what they do in every synchronous step but the first, and in step 3 what they do in every stale step.
    """
    ranks, inside = share.patches * share.branches, int(share.patches > 2)
    config = config.replace(split_batch=share.branches == 2)
    counted = CountedUNet(unet, config, CountingMesh(inside, ranks))
    inputs = unet_inputs(unet, share.batch, share.rows, share.cols)
    counted.begin(guided=share.batch == 2)
    works = []
    for index in range(max(wanted) + 1):
        if index in wanted:
            works.append(counted.counted(inputs).work)
        else:
            counted(**inputs)
    return works


def _solve(rows: Sequence[tuple[Share, Work]], terms: Sequence[str]) -> dict[str, dict[str, float]]:
    """The coefficients of `terms` for every count."""
    known = np.array([[share.terms[term] for term in terms] for share, _ in rows])
    scale = np.abs(known).max(axis=0)
    counts = np.array([astuple(work) for _, work in rows])
    solved, _, rank, _ = np.linalg.lstsq(known / scale, counts)
    assert rank == len(terms), "the shapes do not tell the terms apart"
    solved = solved / scale[:, None]
    # What is left of rounding is no coefficient; ten digits are more than any prediction is good for.
    solved[np.abs(solved) * scale[:, None] < 1e-9 * np.abs(counts).max(axis=0)] = 0.0
    return {
        field.name: {term: float(f"{value:.10g}") for term, value in zip(terms, column, strict=True) if value}
        for field, column in zip(fields(Work), solved.T, strict=True)
    }
