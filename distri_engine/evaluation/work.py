"""What a call asks of a device, counted operation by operation from the shapes that torch sees; on the meta device
nothing is computed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "detach", "lift_fresh"}  # nothing runs

_FILLS = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}  # do not read what they are like


@dataclass(frozen=True)
class Counted:
    """Of one call."""

    macs: int  # of matrix products, convolutions and attention
    moved: int  # bytes that all other operations read and write
    operations: int  # of either kind; views are none, attention is one


def work_of(call: Callable[[], object]) -> Counted:
    """Count `call()`. MACs are half of the floating-point operations that torch's own formulas give."""
    counter = _Counter()
    with counter, _WholeAttention(counter):
        call()
    return Counted(counter.flops // 2, counter.moved, counter.operations)


class _Counter(TorchDispatchMode):
    """Sees every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = self.operations = 0
        self.inside = False  # an operation that has been counted as a whole, but for its products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view or func.overloadpacket.__name__ in _FREE:
            return result
        self.operations += not self.inside
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=result)
        elif not self.inside:
            touched = result if func.overloadpacket.__name__ in _FILLS else (args, kwargs, result)
            tensors = {id(leaf): leaf for leaf in tree_leaves(touched) if isinstance(leaf, torch.Tensor)}
            self.moved += sum(tensor.nbytes for tensor in tensors.values())
        return result


class _WholeAttention(TorchFunctionMode):
    """Attention is one operation that keeps its scores to itself, as devices run it; on the meta device torch takes it
    apart.
    """

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.counter.operations += 1
        self.counter.inside = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.counter.inside = False
