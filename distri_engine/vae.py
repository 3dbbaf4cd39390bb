"""Row-parallel VAE decode: every rank decodes a band of latent rows, exactly, with halos and shared GroupNorm moments
and gathered keys and values in the middle attention; the picture rows meet on rank 0, or on every rank if asked for.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

from distri_engine.bands import Box, cut_rows
from distri_engine.config import DistriConfig, SyncMode
from distri_engine.errors import ModelError, UnsupportedError
from distri_engine.exchange import Exchange
from distri_engine.mesh import Mesh
from distri_engine.plan import DISPLACED_RULES, apply_plan, check_supported, follow, share, structure
from distri_engine.step import StepClock

_CONFIG = DistriConfig(mode=SyncMode.FULL_SYNC, split_batch=False)


class ParallelDecoder:
    """Decodes latents with an `AutoencoderKL` on all ranks of a mesh; the wrapped model stays as it was."""

    def __init__(self, vae: AutoencoderKL, mesh: Mesh) -> None:
        self.vae = vae
        self.mesh = mesh
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)  # picture pixels a latent cell
        self._clock = StepClock()
        self._exchange = Exchange(mesh, self._clock)
        self._structure: tuple[nn.Module, ...] = ()
        self._decoder: nn.Module = vae.decoder

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor, *, on_every_rank: bool = False) -> torch.Tensor | None:
        """latents: [B, 4, H, W], the same on every rank, as the UNet made them (scaled)
        -> picture [B, 3, scale H, scale W] in [-1, 1] on rank 0 (or on every rank), None elsewhere.
        """
        return self.decode(unscale(self.vae, latents), on_every_rank=on_every_rank)

    @torch.no_grad()
    def decode(self, z: torch.Tensor, *, on_every_rank: bool = False) -> torch.Tensor | None:
        """z: [B, 4, H, W] as `AutoencoderKL.decode` takes it -> the picture, as above."""
        if self.mesh.size == 1 or z.shape[2] < self.mesh.size or not self._follow():
            # Every rank that needs the picture decodes it. Of the class: the instance's may be this function.
            if self.mesh.rank == 0 or on_every_rank:
                return type(self.vae).decode(self.vae, z, return_dict=False)[0]
            return None
        boxes = cut_rows(z.shape[2], z.shape[3], 1, self.mesh.size)
        self._clock.begin(warmup_steps=None)
        self._clock.tick()
        self._exchange.begin(_CONFIG, self.mesh.axes(_CONFIG, guided=False), boxes)
        if self.vae.post_quant_conv is not None:
            z = self.vae.post_quant_conv(z)
        rows = self._decoder(z)
        return self._meet(rows, boxes, on_every_rank=on_every_rank)

    def _follow(self) -> bool:
        """Bring the patched decoder up to date with the VAE; False if its result would not be diffusers' own: with
        switches that save memory in another way, and with layers that have no form on bands.
        """
        if self.vae.use_tiling or self.vae.use_slicing:
            return False
        try:
            check_supported(self.vae.decoder)
            current = structure(self.vae.decoder)
            if current != self._structure:  # new, or wrapped in adapters
                self._exchange.close_slots()
                self._structure, self._decoder = (), share(self.vae.decoder)
                apply_plan(self._decoder, DISPLACED_RULES, self._exchange)
                self._structure = current
            follow(self._decoder, self.vae.decoder)
        except (ModelError, UnsupportedError):
            return False
        return True

    def _meet(self, rows: torch.Tensor, boxes: tuple[Box, ...], *, on_every_rank: bool) -> torch.Tensor | None:
        """rows: [B, 3, scale rows, scale W] of this rank -> the picture."""
        mesh, me = self.mesh, self.mesh.rank
        mine = rows.to(mesh.wire_device).contiguous()
        peers = [rank for rank in range(mesh.size) if rank != me]
        receives_here = me == 0 or on_every_rank
        pieces = {
            peer: mine.new_empty(*rows.shape[:2], boxes[peer].rows * self.scale, rows.shape[3])
            for peer in (peers if receives_here else [])
        }
        mesh.swap(dict.fromkeys(peers if on_every_rank else [peer for peer in peers if peer == 0], mine), pieces).wait()
        if not receives_here:
            return None
        return torch.cat([rows if peer == me else pieces[peer].to(rows.device) for peer in range(mesh.size)], dim=2)

    def forget(self) -> None:
        """Free the buffers: the mesh is gone."""
        self._exchange.forget()


def unscale(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the decoder wants them, in its own type: the inverse of the scaling that the UNet works with."""
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)  # SDXL's own VAE overflows in float16
    z = latents.to(vae.dtype)
    mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, len(mean), 1, 1)
        return z * z.new_tensor(std).view(shape) / vae.config.scaling_factor + z.new_tensor(mean).view(shape)
    return z / vae.config.scaling_factor
