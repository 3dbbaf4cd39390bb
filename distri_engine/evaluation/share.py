"""What one rank of many computes, of a step and of the decode, timed on one real device: a mesh that pretends to have
peers, whose data are already in place, and models with random weights. The bound that no communication can beat
(DistriFusion, "No Comm.").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from distri_engine.config import DistriConfig
from distri_engine.evaluation.models import unet_inputs
from distri_engine.mesh import Mesh, Pending
from distri_engine.plan import share
from distri_engine.unet import ParallelUNet
from distri_engine.vae import ParallelDecoder


class PretendedMesh(Mesh):
    """Rank `rank` of `size` on `device`, alone: messages arrive at once, and hold what their buffers held."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        super().__init__(0, 1, device)  # one rank: there is no process group to ask
        self.rank, self.size = rank, size
        self._settled = False  # once all buffers have been cleared, arriving costs nothing

    def swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> Pending:
        """Nothing moves. What would arrive is cleared: a fresh buffer may hold anything, infinities included."""
        if not self._settled:
            for tensor in receives.values():
                tensor.zero_()
        return Pending([], self.meter)

    def settle(self) -> None:
        """From now on messages cost nothing."""
        self._settled = True

    # Ranks of one host, on CPUs, write where their peers read. What these have written is zero here.

    @property
    def has_boards(self) -> bool:
        """Whether the real ranks would have them."""
        return self.size > 1 and self.device.type == "cpu"

    def take_place(self, count: int) -> tuple[int, torch.Tensor]:
        """Somewhere."""
        return 0, _bytes(count)

    def give_place(self, offset: int, count: int) -> None:
        """Nobody needs it."""

    def look(self, rank: int, offset: int, count: int) -> torch.Tensor:
        """Somewhere else."""
        return _bytes(count)


def _bytes(count: int) -> torch.Tensor:
    with torch.inference_mode(False):  # like a real board, it serves pictures in and out of inference mode
        return torch.zeros(count, dtype=torch.uint8)


def fill(model: nn.Module, device: torch.device) -> nn.Module:
    """A model without weights (on the meta device), on `device` with random ones of a usual size: numbers that vanish
    or overflow take other times.
    """
    model = model.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.ndim > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    return model


def real_inputs(unet: UNet2DConditionModel, batch: int, rows: int, cols: int, device: torch.device) -> dict[str, Any]:
    """Arguments of one evaluation, as random numbers on `device`, for latents of rows x cols cells."""
    generator = torch.Generator(device).manual_seed(1)

    def real(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: real(part) for name, part in value.items()}
        return torch.randn(value.shape, generator=generator, dtype=torch.float32, device=device).to(value.dtype)

    inputs = {name: real(value) for name, value in unet_inputs(unet, batch, rows, cols).items()}
    return inputs | {"timestep": torch.tensor(500.0, device=device)}


def share_of_step(
    unet: UNet2DConditionModel, config: DistriConfig, ranks: int, inputs: Mapping[str, Any], *, guided: bool
) -> Callable[[], object]:
    """One steady step of the rank that has most to do among `ranks`, to be called again and again.

    Raises ValueError if the ranks cannot share the picture.
    """
    device = inputs["sample"].device
    patches = PretendedMesh(0, ranks, device).axes(config, guided=guided).patch_size
    mesh = PretendedMesh(_busiest(patches), ranks, device)
    parallel = ParallelUNet(unet, config, mesh)
    parallel.begin(config.replace(warmup_steps=0), guided=guided)

    def step() -> object:
        return parallel(**inputs)

    for _ in range(3):  # the synchronous step, and two stale ones: every buffer is in use, and graphs are recorded
        step()
    mesh.settle()
    return step


def share_of_decode(vae: AutoencoderKL, ranks: int, z: torch.Tensor) -> Callable[[], object]:
    """The decode of z, [B, 4, H, W], by the rank that has most to do among `ranks`, to be called again and again."""
    mesh = PretendedMesh(_busiest(ranks), ranks, z.device)
    decoder = ParallelDecoder(vae, mesh)

    def decode() -> object:
        return decoder.decode(z)

    decode()
    mesh.settle()
    return decode


def _busiest(patches: int) -> int:
    return 1 if patches > 2 else 0  # larger bands come first, inner ones have two halos


def compiled_blocks(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same weights in modules whose transformer blocks are compiled, and nothing around them (regional)."""
    twin: UNet2DConditionModel = share(unet)
    twin.compile_repeated_blocks()
    return twin


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    _synchronize(device)
    start = time.perf_counter()
    with torch.no_grad():
        call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
