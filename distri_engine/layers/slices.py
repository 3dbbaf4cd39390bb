"""Some channels of a linear layer or a convolution, computed with views of its weights; its LoRA adapters are cut too.
Which channels a rank takes, and how partial sums meet, is sharded.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from distri_engine.errors import UnsupportedError

REMEDY = "use parallelism patch or single for this model"


class Slices:
    """A linear layer or a convolution of a module tree. Nothing of it is kept: weights, adapters and their switches are
    read at every call, so that a change of them is seen.
    """

    def __init__(self, path: str, layer: nn.Module) -> None:
        self.path = path
        self.layer = layer

    @property
    def out_channels(self) -> int:
        """Rows of the weight."""
        return int(self._base().weight.shape[0])

    @property
    def in_channels(self) -> int:
        """Columns of the weight."""
        return int(self._base().weight.shape[1])

    def outputs(self, parts: Sequence[range], x: torch.Tensor) -> torch.Tensor:
        """x: [..., C_in] or [B, C_in, H, W] -> the output channels of `parts` alone, bias included."""
        base = self._base()
        pieces = []
        for part in parts:
            own = slice(part.start, part.stop)
            y = _apply(base, x, base.weight[own], None if base.bias is None else base.bias[own])
            for down, up, scale in self._adapters():
                y = y + (_apply(up, down(x.to(down.weight.dtype)), up.weight[own]) * scale).to(y.dtype)
            pieces.append(y)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1 if isinstance(base, nn.Conv2d) else -1)

    def inputs(self, part: range, x: torch.Tensor) -> torch.Tensor:
        """x: the input channels of `part` alone -> what they contribute to all outputs, without bias."""
        base, own = self._base(), slice(part.start, part.stop)
        y = _apply(base, x, base.weight[:, own])
        for down, up, scale in self._adapters():
            y = y + (_apply(up, _apply(down, x.to(down.weight.dtype), down.weight[:, own]), up.weight) * scale).to(
                y.dtype
            )
        return y

    def add_bias(self, y: torch.Tensor) -> torch.Tensor:
        """y: the sum over all input channels -> the layer's output."""
        base = self._base()
        if base.bias is None:
            return y
        return y + (base.bias[:, None, None] if isinstance(base, nn.Conv2d) else base.bias)

    def _base(self) -> Any:
        """The layer itself, under its adapters."""
        layer: Any = self.layer
        base = layer.base_layer if hasattr(layer, "lora_A") else layer
        if type(base) not in (nn.Linear, nn.Conv2d):
            raise UnsupportedError(
                f"{self.path} is a {type(base).__name__}, which cannot be shared out among ranks; {REMEDY}"
            )
        if isinstance(base, nn.Conv2d) and (base.groups != 1 or base.padding_mode != "zeros"):
            raise UnsupportedError(
                f"{self.path} has {base.groups} groups and {base.padding_mode} padding, and only convolutions of one "
                f"group with zeros can be shared out among ranks; {REMEDY}"
            )
        if any(part._forward_hooks or part._forward_pre_hooks for part in (layer, base)):
            raise UnsupportedError(f"{self.path} has a forward hook, which would not run; remove it, or {REMEDY}")
        return base

    def _adapters(self) -> Iterator[tuple[Any, Any, float]]:
        """(A, B, scale) of every active LoRA: the layer's output is W x + scale B (A x)."""
        layer: Any = self.layer
        if not hasattr(layer, "lora_A") or layer.disable_adapters or layer.merged:
            if getattr(layer, "disable_adapters", False) and layer.merged:
                layer.unmerge()  # as peft does at this point
            return
        for name in layer.active_adapters:
            if name not in layer.lora_A:
                continue
            down, up = layer.lora_A[name], layer.lora_B[name]
            other = name in getattr(layer, "lora_variant", {}) or getattr(layer, "use_dora", {}).get(
                name
            )  # by peft's age
            if other or type(up) not in (nn.Linear, nn.Conv2d) or up.bias is not None:
                raise UnsupportedError(
                    f"adapter {name} of {self.path} is more than a plain LoRA (DoRA or a bias), which cannot be shared "
                    "out among ranks; call fuse_lora() first, or use parallelism patch"
                )
            yield down, up, float(layer.scaling[name])


def _apply(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`layer` with other weights."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
    return F.linear(x, weight, bias)
