"""Multiply-accumulates of a call, counted operation by operation from the shapes that torch sees; on the meta device
nothing is computed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def macs_of(call: Callable[[], object]) -> int:
    """MACs of the matrix products, convolutions and attention of `call()`: half of their floating-point operations."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2
