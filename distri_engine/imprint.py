"""What a replayed step takes for granted about a model: everything by which its Python code decides what the device is
to do, and where the weights are. A graph is good for as long as this stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from torch import nn

# Their modules decide by their attributes and by the shapes of their inputs.
_KNOWN = frozenset({"torch", "diffusers", "peft"})
_PROCESSORS = (AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor)  # which keep nothing
_VALUES = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device})  # compared by what they are
_TORCHS_OWN = frozenset(vars(nn.Module())) - {"training"}


class _Same:
    """An object that equals nothing but itself; held, so that no other one comes to stand in its place."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def imprint(model: nn.Module) -> tuple[object, ...] | None:
    """Equal for as long as `model` makes of like inputs the same work on the same memory: its modules, their attributes
    (processors, scales and switches of adapters), and address and version of every weight.

    None if something in it may decide by itself: a hook, a compiled module, a foreign module or attention processor.
    """
    marks: list[object] = []
    for module in model.modules():
        if _is_wilful(module):
            return None
        marks += (module, type(module))  # nn.Module compares by identity
        for name, value in module.__dict__.items():
            if name not in _TORCHS_OWN:
                marks += (name, _mark(value))
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                marks += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return tuple(marks)


def _is_wilful(module: Any) -> bool:
    return (
        type(module).__module__.partition(".")[0] not in _KNOWN
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
        or bool(module._forward_hooks or module._forward_pre_hooks)
        or (isinstance(module, Attention) and type(module.processor) not in _PROCESSORS)
    )


def _mark(value: Any) -> object:
    """`value` as something that can be compared later, even if `value` is changed in place meanwhile."""
    if type(value) in _VALUES:
        return value
    if isinstance(value, Mapping):
        return tuple((name, _mark(each)) for name, each in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_mark(each) for each in value)
    return _Same(value)
