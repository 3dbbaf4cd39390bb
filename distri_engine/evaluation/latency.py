"""Seconds that a picture takes at least, from its counted cost and two figures of the machine."""

from __future__ import annotations

from distri_engine.evaluation.comm import Traffic
from distri_engine.evaluation.profile import Profile, StepCost


def step_seconds(cost: StepCost, *, flops: float, bandwidth: float) -> float:
    """max(computing, messages under way meanwhile) + messages that are waited for.

    flops: FLOP/s of a device, two a MAC. bandwidth: bytes/s of its link, in each direction.
    """
    waited, overlapped = (sum(kinds.values(), Traffic()).link / bandwidth for kinds in (cost.waited, cost.overlapped))
    return max(2 * cost.macs / flops, overlapped) + waited


def picture_seconds(profile: Profile, *, flops: float, bandwidth: float) -> float:
    """Of all steps, each as long as its slowest rank takes. Without text encoding and VAE; launching operations,
    traffic to memory and the delay of a message are free: a lower bound.
    """
    return sum(
        alike[0].times * max(step_seconds(cost, flops=flops, bandwidth=bandwidth) for cost in alike)
        for alike in zip(*(cost.steps for cost in profile.costs), strict=True)
    )
