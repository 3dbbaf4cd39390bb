"""ParallelUNet: a diffusers UNet that makes its prediction on all ranks of a mesh together. Its `forward` is the
architecture of this engine in five verbs: take, cut, run, assemble, join.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from distri_engine.bands import Box
from distri_engine.config import DistriConfig, SyncMode
from distri_engine.errors import UnsupportedError
from distri_engine.graphs import Graphs, Kind, plain_inputs
from distri_engine.mesh import Mesh
from distri_engine.parallel_model import ParallelModel
from distri_engine.step import Phase
from distri_engine.tape import Recorder, recorder_for

# What ControlNets and T2I-Adapters add inside the UNet, level by level.
_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
# Arguments for attention processors that place something in the whole picture.
_WHOLE_PICTURE_ARGUMENTS = {"ip_adapter_masks": "IP-Adapter masks", "gligen": "GLIGEN boxes"}
# Modes whose stale steps wait for nobody inside a layer, and do the same work in each of them.
_REPLAYED = frozenset({SyncMode.STALE_GN, SyncMode.CORRECTED_ASYNC_GN, SyncMode.SEPARATE_GN, SyncMode.NO_SYNC})


class ParallelUNet(ParallelModel):
    """Wraps a `UNet2DConditionModel`: same arguments, same result, full size, on every rank.

    The wrapped model stays as it was and keeps its parameter names; every attribute that is not found here is its own.
    """

    def __init__(
        self, unet: UNet2DConditionModel, config: DistriConfig, mesh: Mesh, *, recorder: Recorder | None = None
    ) -> None:
        """recorder: what records steps to be replayed; default: CUDA graphs on a GPU, nothing elsewhere."""
        super().__init__(unet, config, mesh)
        self._graphs = Graphs(recorder or recorder_for(mesh.device), self.clock)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The wrapped model."""
        return self.model

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

        Residuals of ControlNets and T2I-Adapters may have the size of the whole picture or of this rank's patch.
        Raises ValueError if the latents do not fit the mesh, UnsupportedError for inputs that have no form on bands.
        """
        conditions["class_labels"] = class_labels
        self._check(sample, conditions)
        boxes = self._start_step(sample)
        sample, timestep, encoder_hidden_states, conditions = self._take(  # this rank's guidance branch
            sample, timestep, encoder_hidden_states, conditions
        )
        box = boxes[self.axes.patch]
        patch, conditions = self._cut(sample, conditions, box)
        output = self._run(patch, timestep, encoder_hidden_states, conditions)  # the layers, or a graph of them
        pieces = self._assemble(output, boxes)  # every rank's patch
        picture = self._join(pieces, boxes)  # both branches
        return UNet2DConditionOutput(sample=picture) if return_dict else (picture,)

    def _check(self, sample: torch.Tensor, conditions: dict[str, Any]) -> None:
        for name, what in _WHOLE_PICTURE_ARGUMENTS.items():
            if not self.method.whole and (conditions.get("cross_attention_kwargs") or {}).get(name) is not None:
                raise UnsupportedError(f"{what} ({name}) cannot be cut into patches; use parallelism single")
        for follower in self.followers:
            halved = getattr(follower, "halved", None)
            if halved not in (None, sample.shape[0]):
                raise ValueError(
                    f"the ControlNet halved a batch of {halved} between the guidance branches, the UNet's is "
                    f"{sample.shape[0]}; pass it the same batch, or guess_mode=True for the conditional half alone"
                )

    # --- the five verbs

    def _take(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        conditions: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | float | int, torch.Tensor, dict[str, Any]]:
        return self._half(sample.shape[0], (sample, timestep, encoder_hidden_states, conditions))

    def _cut(self, sample: torch.Tensor, conditions: dict[str, Any], box: Box) -> tuple[torch.Tensor, dict[str, Any]]:
        size = (int(sample.shape[2]), int(sample.shape[3]))
        cut = dict(conditions)
        for name in _RESIDUALS:
            given = conditions.get(name)
            if isinstance(given, torch.Tensor):
                cut[name] = self._cut_residual(name, given, size, box)
            elif given is not None:  # a list of our own: the UNet takes the residuals out of it
                cut[name] = [self._cut_residual(name, residual, size, box) for residual in given]
        return self.method.feed(sample, box), cut

    def _cut_residual(self, name: str, residual: torch.Tensor, size: tuple[int, int], box: Box) -> torch.Tensor:
        """residual: [b, C, h, w] of the whole picture, at any level of the UNet -> this rank's patch of it; one that is
        a patch already, or 1 x 1, stays as it is.
        """
        shape = (int(residual.shape[-2]), int(residual.shape[-1]))
        scale = 1
        while scale <= self.unit:
            if shape == (box.rows // scale, box.cols // scale):
                return residual
            if shape == (size[0] // scale, size[1] // scale):
                top, bottom, left, right = (edge // scale for edge in (box.top, box.bottom, box.left, box.right))
                return residual[..., top:bottom, left:right]
            scale *= 2
        if shape == (1, 1):
            return residual
        raise ValueError(
            f"{name} holds a residual of {shape[0]} x {shape[1]}, which is no level of the {size[0]} x {size[1]} "
            f"latents, nor of this rank's {box.rows} x {box.cols}; run the ControlNet or adapter at the picture's size"
        )

    def _run(
        self,
        patch: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        conditions: dict[str, Any],
    ) -> torch.Tensor:
        if self._graphs.recorder is not None and (kind := self._kind()) is not None:
            inputs = plain_inputs(patch, timestep, encoder_hidden_states, conditions)
            if inputs is not None:
                tree = self._trees.get(self._rules(self.method), self.model)
                exchange = self._exchange if kind.trades else None
                return self._graphs.run(kind, inputs, self._layers, tree, exchange)
        return self._layers(patch, timestep, encoder_hidden_states, **conditions)

    def _layers(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **conditions: Any,
    ) -> torch.Tensor:
        output: torch.Tensor = self._tree(sample, timestep, encoder_hidden_states, return_dict=False, **conditions)[0]
        self._exchange.finish_step()
        return output

    def _kind(self) -> Kind | None:
        """What sets this step apart from others, shapes aside; None: it is not to be replayed.

        Where layers trade, only stale steps are that wait for nobody inside a layer, over messages that never leave
        the device.
        """
        config, exchange, mesh = self.parallel_config, self._exchange, self.mesh
        self._graphs.keep(exchange.layout)
        if (
            not config.use_cuda_graph
            or self.model.config.time_embedding_type != "positional"  # which rounds timesteps to float32
            or torch.is_autocast_enabled(mesh.device.type)
            or not self._graphs.know(self.model)
        ):
            return None
        if not self._rules(self.method) or exchange.patches == 1:
            return Kind(config.parallelism)
        if (
            not self.method.displaced
            or self.clock.step.phase is Phase.SYNC
            or config.mode not in _REPLAYED
            or mesh.has_boards
            or mesh.wire_device != mesh.device
        ):
            return None
        decides = (config.mode, config.bessel_correction, exchange.axes, exchange.rows)
        return Kind(config.parallelism, decides, exchange.layout)

    def forget(self) -> None:
        """Free the exchange's buffers, and graphs with what they hold: the mesh is gone."""
        super().forget()
        self._graphs.forget()

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
                for model in (self, *self.followers):
                    model.clock.settle()
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
