"""How a step is shared out: one strategy a system, and the registry that names them."""

from __future__ import annotations

from distri_engine.config import Parallelism
from distri_engine.methods.base import Advance, Method, Predict
from distri_engine.methods.displaced import DisplacedPatch
from distri_engine.methods.naive import NaivePatch
from distri_engine.methods.paradigms import Paradigms
from distri_engine.methods.single import Single
from distri_engine.methods.tensor import TensorParallel

METHODS: dict[Parallelism, Method] = {
    Parallelism.SINGLE: Single(),
    Parallelism.NAIVE_PATCH: NaivePatch(),
    Parallelism.PATCH: DisplacedPatch(),
    Parallelism.PARADIGMS: Paradigms(),
    Parallelism.TENSOR: TensorParallel(),
}

__all__ = [
    "METHODS",
    "Advance",
    "DisplacedPatch",
    "Method",
    "NaivePatch",
    "Paradigms",
    "Predict",
    "Single",
    "TensorParallel",
]
