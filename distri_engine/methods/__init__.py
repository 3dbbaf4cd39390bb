"""How a step is shared out: one strategy a system, and the registry that names them."""

from __future__ import annotations

from distri_engine.config import Parallelism
from distri_engine.methods.base import Method
from distri_engine.methods.displaced import DisplacedPatch
from distri_engine.methods.naive import NaivePatch
from distri_engine.methods.single import Single
from distri_engine.methods.tensor import TensorParallel

METHODS: dict[Parallelism, Method] = {
    Parallelism.SINGLE: Single(),
    Parallelism.NAIVE_PATCH: NaivePatch(),
    Parallelism.PATCH: DisplacedPatch(),
    Parallelism.TENSOR: TensorParallel(),
}

__all__ = ["METHODS", "DisplacedPatch", "Method", "NaivePatch", "Single", "TensorParallel"]
