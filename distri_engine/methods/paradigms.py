"""ParaDiGMS: Picard iterations over a sliding window of timesteps (Shih et al., "Parallel Sampling of Diffusion
Models", NeurIPS 2023, Algorithm 1). The ranks share the window's timesteps; each runs the model as it is, on whole
pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch

from distri_engine.bands import Box
from distri_engine.config import DistriConfig
from distri_engine.errors import UnsupportedError
from distri_engine.mesh import Mesh
from distri_engine.methods.base import Advance, Predict, WholePicture


class Paradigms(WholePicture):
    """Parallel over time. A window of p timesteps costs each of N ranks a UNet batch of ceil(p / N) pictures."""

    over_time = True

    def feed(self, sample: torch.Tensor, box: Box) -> torch.Tensor:
        """Raises UnsupportedError: there is nothing to share in the one timestep of a call."""
        raise UnsupportedError(
            "parallelism paradigms shares out timesteps, and a call of the UNet has but one; "
            "let DistriSDXLPipeline or Engine sample, or choose another parallelism"
        )

    def denoise(
        self,
        latents: torch.Tensor,
        scheduler: Any,
        timesteps: torch.Tensor,
        predict: Predict,
        config: DistriConfig,
        mesh: Mesh,
    ) -> Iterator[Advance]:
        """One Picard iteration a step; at most as many as there are timesteps."""
        window = config.picard_window or mesh.size
        return picard(latents, scheduler, timesteps, predict, mesh, window=window, tolerance=config.picard_tolerance)


def picard(
    latents: torch.Tensor,
    scheduler: Any,
    timesteps: torch.Tensor,
    predict: Predict,
    mesh: Mesh,
    *,
    window: int,
    tolerance: float,
) -> Iterator[Advance]:
    """Solve x_j = x_begin + sum of drift(x_i), begin <= i < j, for all `window` points after x_begin at once, by
    repeated substitution. latents: [B, C, H, W], x_0, the same on every rank, as is everything here but the UNet's
    work.

    A point has converged when the mean square of its last move is at most tolerance^2 x the variance of DDPM's noise
    at its timestep, for every picture of the batch. Tolerance 0 is sequential sampling to rounding. `scheduler` steps
    by DDIM without noise. Memory: latents of window + 1 points, and a UNet batch of window / ranks timesteps.
    """
    timesteps = timesteps.to(latents.device)  # [T]
    times = timesteps.tolist()  # the scheduler is asked with plain numbers, which stop no GPU
    allowed = [tolerance**2 * variance for variance in _noise_variances(scheduler, times)]
    begin, points = 0, latents.repeat(min(window, len(times)) + 1, 1, 1, 1, 1)  # x_begin, and guesses: [p + 1, B, ...]
    while begin < len(times):
        count = min(window, len(times) - begin)
        noise, evaluations = _predict_together(points[:count], timesteps[begin : begin + count], predict, mesh)

        # x_j is rounded once, from a sum in float64: a drift is the small difference of large latents, and like this
        # the converged path has the very bits of x_j+1 = step(x_j).
        reach, path, headings = points[0].double(), [], []
        for x, e, timestep in zip(points[:count], noise, times[begin:], strict=False):
            result = scheduler.step(e, timestep, x)
            reach = reach + (result.prev_sample.double() - x.double())
            path.append(reach.to(x.dtype))
            headings.append(result.pred_original_sample)
        renewed = torch.stack(path)  # [count, B, C, H, W]: x_begin+1 .. x_begin+count

        moved = (renewed.double() - points[1 : count + 1].double()).square().flatten(2).mean(2).amax(1).tolist()
        # x_begin+1 is exact; x_j+1 is as good as the points before it. Not a number counts as not converged.
        stride = 1
        while stride < count and moved[stride - 1] <= allowed[begin + stride]:
            stride += 1
        begin += stride
        # Points that enter the window start from its last one.
        points = torch.cat([renewed[stride - 1 :], renewed[-1:].expand(stride, *latents.shape)])
        yield Advance(latents=points[0], heading=headings[stride - 1], converged=begin, evaluations=evaluations)


def _noise_variances(scheduler: Any, times: list[int]) -> list[float]:
    """sigma_t^2 of every timestep for eta = 1 (DDIM, equation 16), which is what the tolerance is relative to."""
    spacing = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    return [float(scheduler._get_variance(time, time - spacing)) for time in times]


def _predict_together(
    points: torch.Tensor, timesteps: torch.Tensor, predict: Predict, mesh: Mesh
) -> tuple[torch.Tensor, int]:
    """points: [k, B, C, H, W] at timesteps: [k] -> noise predictions of that shape, the same on every rank, and how
    many of the k this rank made. Neighbouring timesteps go to one rank, in one batch; a rank may get none.
    """
    edges = [-(-len(points) * rank // mesh.size) for rank in range(mesh.size + 1)]
    shares = [slice(first, end) for first, end in pairwise(edges)]
    noise = torch.empty_like(points, device=mesh.wire_device, memory_format=torch.contiguous_format)
    mine = shares[mesh.rank]
    count = mine.stop - mine.start
    if count:
        own = predict(points[mine].flatten(0, 1), timesteps[mine].repeat_interleave(points.shape[1]))
        noise[mine] = own.unflatten(0, (count, points.shape[1])).to(noise.device)
    peers = [rank for rank in range(mesh.size) if rank != mesh.rank]
    mesh.swap(
        dict.fromkeys(peers, noise[mine]) if count else {},
        {peer: noise[shares[peer]] for peer in peers if shares[peer].stop > shares[peer].start},
    ).wait()
    return noise.to(points.device), count
