"""One rank's share of a step: what is timed is what that rank would compute."""

from __future__ import annotations

import pytest
import torch

from distri_engine import DistriConfig
from distri_engine.evaluation.models import unet_inputs, unet_on_meta
from distri_engine.evaluation.profile import profile
from distri_engine.evaluation.share import fill, real_inputs, share_of_step
from distri_engine.evaluation.work import work_of
from tests.support.models import DEMO_MODEL


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("split", [True, False])
def test_a_share_takes_the_macs_that_profile_counts(ranks: int, split: bool) -> None:
    config = DistriConfig(split_batch=split, warmup_steps=0)
    unet = unet_on_meta(str(DEMO_MODEL), torch.float32)  # where attention is counted, too
    step = share_of_step(unet, config, ranks, unet_inputs(unet, 2, 32, 32), guided=True)
    counted = profile(unet, config, ranks, size=(32, 32), steps=3, guided=True)
    assert work_of(step).macs == counted.busiest.steps[-1].macs


def test_a_share_with_random_weights() -> None:
    cpu = torch.device("cpu")
    unet = fill(unet_on_meta(str(DEMO_MODEL), torch.float32), cpu)
    inputs = real_inputs(unet, 2, 32, 32, cpu)
    config = DistriConfig(split_batch=False)
    share = share_of_step(unet, config, 2, inputs, guided=True)().sample  # type: ignore[attr-defined]
    with torch.no_grad():
        whole = unet(**inputs).sample
    assert share.shape == whole.shape
    assert 0.01 < share[:, :, :16].std() < 100  # neither vanishing nor overflowing
    assert not torch.equal(share, whole)
