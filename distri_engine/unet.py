"""ParallelUNet: a diffusers UNet that makes its prediction on all ranks of a mesh together. Its `forward` is the
architecture of this engine in five verbs: take, cut, run, assemble, join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from distri_engine.bands import Box
from distri_engine.config import AUTO, DistriConfig, SyncMode
from distri_engine.errors import UnsupportedError
from distri_engine.exchange import Exchange
from distri_engine.mesh import Axes, Mesh
from distri_engine.methods import METHODS, Method
from distri_engine.plan import PlanReport, apply_plan, check_supported, follow, share, structure
from distri_engine.step import Phase, StepClock

_WHOLE_PICTURE_ARGUMENTS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


class ParallelUNet(nn.Module):
    """Wraps a `UNet2DConditionModel`: same arguments, same result, full size, on every rank.

    The wrapped model stays as it was and keeps its parameter names; every attribute that is not found here is its own.
    Methods that patch layers run a second tree of modules over the same weights.
    """

    def __init__(self, unet: UNet2DConditionModel, config: DistriConfig, mesh: Mesh) -> None:
        super().__init__()
        self.unet = unet
        self.mesh = mesh
        self.parallel_config = config
        self.unit = 2 ** (len(unet.config.block_out_channels) - 1)  # latent rows
        self.clock = StepClock()
        self.report = PlanReport()
        self._trees: dict[tuple[Any, ...], nn.Module] = {}
        self._structure: tuple[int, ...] = ()
        self._tree: Callable[..., Any] = unet.__call__
        self._exchange = Exchange(mesh, self.clock)
        self.begin(config)

    def begin(self, config: DistriConfig | None = None, *, guided: bool | None = None) -> None:
        """Start of a picture: rewinds the clock. Size, method and mode may differ from the last picture's.

        `guided` says whether the batch holds both guidance branches, unconditional first; default: as configured.
        """
        if config is not None:
            self.parallel_config = config
        self.method = METHODS[self.parallel_config.parallelism]
        self.axes: Axes = self.mesh.axes(
            self.parallel_config, guided=self.parallel_config.do_classifier_free_guidance if guided is None else guided
        )
        self._size: tuple[int, ...] | None = None  # of the latents, known at the first step
        warmup = self.parallel_config.warmup_steps
        if not self.method.displaced or self.parallel_config.mode is SyncMode.FULL_SYNC:
            self.clock.begin(None)
        elif warmup == AUTO:
            self.clock.begin(None, adaptive=True)
        else:
            self.clock.begin(warmup)

    def end(self) -> None:
        """End of a picture: waits for messages still in flight. Every rank must get here after the same step."""
        self._exchange.drain()

    def forget(self) -> None:
        """Free the exchange's buffers and let go of every message: the mesh is gone."""
        self._exchange.forget()

    @torch.no_grad()
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        *,
        return_dict: bool = True,
        **conditions: Any,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """sample: [B, 4, H, W] latents -> `.sample`: [B, 4, H, W] noise prediction, the same on every rank.

        Raises ValueError if the latents do not fit the mesh, UnsupportedError for inputs that have no form on bands.
        """
        conditions["class_labels"] = class_labels
        boxes = self._start_step(sample, conditions)
        sample, timestep, encoder_hidden_states, conditions = self._take(  # this rank's guidance branch
            sample, timestep, encoder_hidden_states, conditions
        )
        box = boxes[self.axes.patch]
        patch = self.method.feed(sample, box)  # cut
        output = self._tree(patch, timestep, encoder_hidden_states, return_dict=False, **conditions)[0]  # run
        self._exchange.finish_step()
        pieces = self._assemble(output, boxes)  # every rank's patch
        picture = self._join(pieces, boxes)  # both branches
        return UNet2DConditionOutput(sample=picture) if return_dict else (picture,)

    # --- the five verbs

    def _start_step(self, sample: torch.Tensor, conditions: Mapping[str, Any]) -> tuple[Box, ...]:
        step = self.clock.tick()
        size = (int(sample.shape[2]), int(sample.shape[3]))
        for length, side in zip(size, ("rows", "columns"), strict=True):
            if length % self.unit:
                raise ValueError(f"{length} latent {side} are not a multiple of {self.unit}, the unit of this UNet")
        if self.axes.cfg_size == 2 and sample.shape[0] % 2:
            raise ValueError(
                f"a batch of {sample.shape[0]} cannot be halved between the guidance branches; "
                "pass split_batch=False, or do_classifier_free_guidance=False"
            )
        if not self.method.whole:
            for name in _WHOLE_PICTURE_ARGUMENTS:
                if conditions.get(name) is not None:
                    raise UnsupportedError(
                        f"{name} (ControlNet, T2I-Adapter) cannot be cut into patches; use parallelism tensor or single"
                    )
        boxes = self.method.boxes(self.parallel_config, step, size, self.unit, self.axes.patch_size)
        if self._size is None:
            self._size = tuple(sample.shape)
            self._tree = self._tree_of(self.method)
            self._exchange.begin(self.parallel_config, self.axes, boxes)
        elif self._size != tuple(sample.shape):
            raise ValueError(
                f"latents changed from {self._size} to {tuple(sample.shape)} within a picture; call begin() first"
            )
        self._exchange.start_step()
        return boxes

    def _take(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        conditions: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | float | int, torch.Tensor, dict[str, Any]]:
        if self.axes.cfg_size == 1 or self.method.alone:
            return sample, timestep, encoder_hidden_states, conditions
        batch = sample.shape[0]

        def half(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == batch:
                return value.chunk(2)[self.axes.cfg]
            if isinstance(value, list | tuple):
                return type(value)(half(item) for item in value)
            return {key: half(item) for key, item in value.items()} if isinstance(value, dict) else value

        return half(sample), half(timestep), half(encoder_hidden_states), half(conditions)

    def _assemble(self, output: torch.Tensor, boxes: tuple[Box, ...]) -> dict[int, torch.Tensor]:
        """output: [b, C, rows, columns] of this rank -> by rank, the outputs that make the picture."""
        if self.method.alone or self.mesh.size == 1:
            return {self.mesh.rank: output}
        # In an adaptive warm-up a number rides along, so that all ranks end it after the same step.
        warming = self.clock.adaptive and self.clock.step.phase is Phase.SYNC
        riders = output.new_tensor([self._exchange.change()] if warming else [])
        mine = torch.cat([output.flatten(), riders]).to(self.mesh.wire_device)
        axes = self.axes
        patches = [axes.patch] if self.method.whole else range(axes.patch_size)
        ranks = [axes.rank_at(cfg, patch) for cfg in range(axes.cfg_size) for patch in patches]
        peers = [rank for rank in ranks if rank != self.mesh.rank]
        shapes = {
            rank: (*output.shape[:2], boxes[rank % len(boxes)].rows, boxes[rank % len(boxes)].cols) for rank in peers
        }
        messages = {rank: mine.new_empty(prod(shape) + len(riders)) for rank, shape in shapes.items()}
        self.mesh.swap(dict.fromkeys(peers, mine), messages).wait()
        if warming:
            changes = torch.stack([messages.get(rank, mine)[-1] for rank in range(self.mesh.size)])
            if float(changes.double().mean()) <= self.parallel_config.warmup_threshold:
                self.clock.settle()
        pieces = {rank: message[: prod(shapes[rank])].view(shapes[rank]) for rank, message in messages.items()}
        pieces[self.mesh.rank] = output
        return pieces

    def _join(self, pieces: dict[int, torch.Tensor], boxes: tuple[Box, ...]) -> torch.Tensor:
        if len(pieces) == 1:
            return next(iter(pieces.values()))
        mine = pieces[self.mesh.rank]
        bottom, right = max(box.bottom for box in boxes), max(box.right for box in boxes)
        picture = mine.new_empty(self.axes.cfg_size, *mine.shape[:2], bottom, right)
        for rank, piece in pieces.items():
            branch, patch = divmod(rank, self.axes.patch_size)
            box = boxes[patch]
            picture[branch, :, :, box.top : box.bottom, box.left : box.right] = piece.to(mine.device)
        return picture.flatten(0, 1)

    # --- the trees of modules

    def _tree_of(self, method: Method) -> Callable[..., Any]:
        if not method.rules:
            return self.unet.__call__
        check_supported(self.unet, whole=method.whole)
        current = structure(self.unet)
        if current != self._structure:
            self._trees.clear()
            self._exchange.close_slots()
            self._structure = current
        if method.rules not in self._trees:
            tree = share(self.unet)
            self.report = apply_plan(tree, method.rules, self._exchange)
            if self.parallel_config.verbose and self.mesh.rank == 0:
                print(f"plan: {self.report}")
            self._trees[method.rules] = tree
        follow(self._trees[method.rules], self.unet)
        return self._trees[method.rules].__call__  # a bound method: an attribute that is a module would be registered

    # --- a diffusers model for everybody else

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("unet"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's, with diffusers' own names."""
        return self.unet.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the wrapped model, and so into every method's tree."""
        return self.unet.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The wrapped model's, with diffusers' own names."""
        return self.unet.named_parameters(*args, **kwargs)
