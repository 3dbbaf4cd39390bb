"""How one picture is parallelised: DistriConfig and its enums. Frozen, pure, validated, and free of torch;
where this process sits in the group is the business of mesh.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch


Choice = TypeVar("Choice", bound=StrEnum)


class Parallelism(StrEnum):
    """Which system makes the picture."""

    SINGLE = "single"  # one device does everything
    NAIVE_PATCH = "naive_patch"  # the UNet runs on each patch alone, patches never talk
    PATCH = "patch"  # displaced patch parallelism (DistriFusion, section 4)
    PARADIGMS = "paradigms"  # Picard iterations over a window of timesteps (ParaDiGMS, Algorithm 1)
    TENSOR = "tensor"  # every layer's weights shared out, one all-reduce a layer (the paper's baseline, section 5)


class SyncMode(StrEnum):
    """What is fresh and what is one step old after warm-up (DistriFusion, sections 4.2 and 5.4)."""

    FULL_SYNC = "full_sync"  # everything fresh at every step: exact
    SYNC_GN = "sync_gn"  # GroupNorm moments fresh, the rest displaced
    STALE_GN = "stale_gn"  # own moments fresh, the peers' from the previous step
    CORRECTED_ASYNC_GN = "corrected_async_gn"  # previous global moments + (own fresh - own previous)
    EXTRAPOLATED = "extrapolated"  # peers' values as their senders foresaw them one step ago (ours, not the paper's)
    SEPARATE_GN = "separate_gn"  # own moments only
    NO_SYNC = "no_sync"  # nothing is exchanged after warm-up: the upper bound on speed


class SplitScheme(StrEnum):
    """How naive patches cut the picture."""

    ROW = "row"
    COL = "col"
    ALTERNATE = "alternate"  # even steps rows, odd steps columns


class TextEncoderOn(StrEnum):
    """Which ranks load the text encoders."""

    RANK0 = "rank0"  # the others are told what it made of the text: less memory
    ALL = "all"  # everybody encodes for itself: nothing is sent


# A side must be a multiple of 8 (VAE) x 2^(UNet levels - 1); 32 for SDXL. Models with more levels check again.
SIZE_MULTIPLE = 32


def check_size(name: str, value: Any, multiple: int = SIZE_MULTIPLE) -> int:
    """Return `value`, a picture side in pixels, as an int, or raise ValueError with the nearest sizes that would do."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} {value!r} is not a whole number of pixels; give a multiple of {multiple}")
    value = int(value)
    if value <= 0:
        raise ValueError(f"{name} {value} is not a positive multiple of {multiple}; the smallest is {multiple}")
    if value % multiple:
        below, above = value // multiple * multiple, (value // multiple + 1) * multiple
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(f"{name} {value} is not a multiple of {multiple}; nearest: {nearest}")
    return value


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """Return `value`, Python's or NumPy's, as an int if it is a whole number in [low, high], else raise ValueError."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} {value!r} is not a whole number; give one from {low} to {high}")
    value = int(value)
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is out of range; give a number from {low} to {high}")
    return value


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float if it is a finite number in [low, high], else raise ValueError saying so."""
    if not isinstance(value, Real) or isinstance(value, bool) or value != value:
        raise ValueError(f"{name} {value!r} is not a finite number; give one from {low:g} to {high:g}")
    value = float(value)
    if not low <= value <= high:
        raise ValueError(f"{name} {value:g} is out of range; give a number from {low:g} to {high:g}")
    return value


def check_choice(name: str, value: Any, choices: type[Choice]) -> Choice:
    """Return `value` as a member of `choices`, else raise ValueError that lists them."""
    try:
        return choices(value)
    except ValueError:
        raise ValueError(f"unknown {name} {value!r}; choose one of: {', '.join(choices)}") from None


def check_bool(name: str, value: Any) -> bool:
    """Return `value` if it is True or False, else raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} {value!r} is not True or False")
    return value


def check_factors(name: str, value: Any, high: float, moments: float | None = None) -> tuple[float, float, float]:
    """Return `value`, one factor in [0, high] or (keys and values, halos, moments), as three, else raise ValueError.
    `moments` is theirs if there is but one; None: the same.
    """
    one = (value, value, value if moments is None else moments)
    factors = tuple(value) if isinstance(value, (list, tuple)) else one
    if len(factors) != 3:
        raise ValueError(
            f"{name} {value!r} has {len(factors)} factors; give one, or three: for keys and values, halos, moments"
        )
    keys_values, halos, last = (check_number(name, factor, 0, high) for factor in factors)
    return keys_values, halos, last


AUTO: Literal["auto"] = "auto"  # warmup_steps that end by themselves


@dataclass(frozen=True, kw_only=True)
class DistriConfig:
    """How a picture is parallelised. Accepts the original DistriFusion's names; starts no process group.

    Raises ValueError with the number, the rule and the remedy.
    """

    height: int = 1024  # default picture height in pixels; a call may pass another
    width: int = 1024  # default picture width in pixels; a call may pass another
    do_classifier_free_guidance: bool = True  # two UNet branches a step: unconditional and conditional
    split_batch: bool = True  # with guidance and an even number of ranks, half of them take each branch
    # Steps 0..warmup_steps are synchronous, the next one is the first stale one. "auto": the warm-up ends after the
    # first step whose keys and values differ from the previous step's by at most `warmup_threshold`.
    warmup_steps: int | Literal["auto"] = 4
    warmup_threshold: float = 0.1  # relative L2 difference, mean over layers and ranks
    comm_checkpoint: int = 60  # payloads of this many layers travel together, asynchronously
    mode: SyncMode = SyncMode.CORRECTED_ASYNC_GN  # what is fresh and what is stale after warm-up
    # Mode extrapolated sends x(t) + a (d(t) + m d(t-1)) in place of x(t), with d(t) = x(t) - x(t-1). Each factor is one
    # or three: for keys and values, halos, GroupNorm moments. One `a` leaves moments, which are corrected, as they are.
    extrapolation: float | tuple[float, float, float] = 0.5  # a
    extrapolation_memory: float | tuple[float, float, float] = 0.5  # m; where it is 0, d(t-1) is not kept
    use_cuda_graph: bool = True  # on GPUs, replay the UNet's steps as CUDA graphs where that can be done (graphs.py)
    parallelism: Parallelism = Parallelism.PATCH  # which system makes the picture
    ranks: int | None = None  # the first so many ranks of the group make it, the others rest; None: all. Engine only
    split_scheme: SplitScheme = SplitScheme.ROW  # how naive patches cut the picture
    picard_window: int | None = None  # timesteps that paradigms refines at once, at most all; None: one a rank
    picard_tolerance: float = 0.1  # how far a Picard iterate may still move, relative to its timestep's noise level
    bessel_correction: bool = False  # multiply shared variances by k/(k-1) as the original does
    verbose: bool = False  # print the plan report

    def __post_init__(self) -> None:
        # A frozen dataclass is written through object.
        for name in ("height", "width"):
            object.__setattr__(self, name, check_size(name, getattr(self, name)))
        if self.warmup_steps != AUTO:
            if isinstance(self.warmup_steps, str):
                raise ValueError(f'warmup_steps {self.warmup_steps!r} is not a number of steps; give one, or "auto"')
            object.__setattr__(self, "warmup_steps", check_int("warmup_steps", self.warmup_steps, 0, 1000))
        object.__setattr__(self, "warmup_threshold", check_number("warmup_threshold", self.warmup_threshold, 0, 10))
        object.__setattr__(self, "extrapolation", check_factors("extrapolation", self.extrapolation, 2, moments=0))
        memory = check_factors("extrapolation_memory", self.extrapolation_memory, 1)
        object.__setattr__(self, "extrapolation_memory", memory)
        object.__setattr__(self, "comm_checkpoint", check_int("comm_checkpoint", self.comm_checkpoint, 1, 100_000))
        for name in ("ranks", "picard_window"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_int(name, getattr(self, name), 1, 1000))
        for name in ("do_classifier_free_guidance", "split_batch", "use_cuda_graph", "bessel_correction", "verbose"):
            check_bool(name, getattr(self, name))
        tolerance = check_number("picard_tolerance", self.picard_tolerance, 0, 100)
        object.__setattr__(self, "picard_tolerance", tolerance)
        # Strings are welcome where an enum stands.
        object.__setattr__(self, "mode", check_choice("mode", self.mode, SyncMode))
        object.__setattr__(self, "parallelism", check_choice("parallelism", self.parallelism, Parallelism))
        object.__setattr__(self, "split_scheme", check_choice("split_scheme", self.split_scheme, SplitScheme))

    def replace(self, **changes: Any) -> DistriConfig:
        """A copy with `changes`, validated again."""
        return dataclasses.replace(self, **changes)

    # The original's read-only properties. Where a process sits is known to mesh.py alone, which is asked when
    # (and only when) somebody wants to know: the one import of this file that points upwards.

    @property
    def rank(self) -> int:
        """This process's rank in the torchrun group; 0 without one."""
        from distri_engine.mesh import current_rank

        return current_rank()

    @property
    def world_size(self) -> int:
        """Number of ranks in the torchrun group; 1 without one."""
        from distri_engine.mesh import current_world_size

        return current_world_size()

    @property
    def device(self) -> torch.device:
        """The device that this rank computes on."""
        from distri_engine.mesh import default_device

        return default_device()
