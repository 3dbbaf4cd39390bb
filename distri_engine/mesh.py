"""Where this rank sits: axes cfg x patch, device, process group, and the four ways in which ranks talk. The only file
that names backends and devices or reads the torchrun variables; what is said over it is exchange.py's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from distri_engine.bands import branch_ranks
from distri_engine.config import DistriConfig
from distri_engine.errors import MeshError
from distri_engine.telemetry import Meter

_LAUNCH_TIMEOUT = timedelta(minutes=10)
_HEADER = 64  # int64 words that describe a broadcast list of tensors


def current_rank() -> int:
    """This process's rank: of the process group if there is one, else of torchrun's variables, else 0."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def current_world_size() -> int:
    """Number of ranks: of the process group if there is one, else of torchrun's variables, else 1."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def resolve_device(kind: str = "auto") -> torch.device:
    """The device of this rank for "auto", "cpu" or "cuda". Ranks share GPUs in turn if there are more ranks than GPUs.

    Raises ValueError for another word and MeshError if CUDA is asked for and absent.
    """
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {kind!r}; choose one of: auto, cpu, cuda")
    gpus = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cuda" and not gpus:
        raise MeshError("no CUDA device is visible to this process; use --device cpu")
    if not gpus:
        return torch.device("cpu")
    return torch.device(f"cuda:{int(os.environ.get('LOCAL_RANK', current_rank())) % gpus}")


def default_device() -> torch.device:
    """The device of this rank when nobody chose one."""
    return resolve_device("auto")


def device_name(device: torch.device) -> str:
    """For people: "CPU" or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def backend_for(device: torch.device) -> str:
    """The torch.distributed backend for ranks that compute on `device`; NCCL needs a GPU for every rank of a host."""
    if device.type != "cuda":
        return "gloo"
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", current_world_size()))
    return "nccl" if torch.cuda.device_count() >= ranks_here else "gloo"


@dataclass(frozen=True)
class Axes:
    """Position of a rank on the mesh: guidance branch `cfg` of `cfg_size`, patch `patch` of `patch_size`."""

    rank: int
    cfg_size: int
    patch_size: int

    @property
    def cfg(self) -> int:
        return self.rank // self.patch_size

    @property
    def patch(self) -> int:
        return self.rank % self.patch_size

    def rank_at(self, cfg: int, patch: int) -> int:
        """The rank that runs guidance branch `cfg` on patch `patch`."""
        return cfg * self.patch_size + patch


class Pending:
    """Messages under way. `wait` returns when all of them have arrived or left; it may be called again."""

    def __init__(self, works: Sequence[dist.Work], meter: Meter) -> None:
        self._works = list(works)
        self._meter = meter

    def wait(self) -> None:
        """Block until the buffers may be read and written again. Raises RuntimeError if a peer is lost."""
        if not self._works:
            return
        with self._meter.waiting():
            for work in self._works:
                work.wait()
        self._works.clear()


class Mesh:
    """The ranks that make one picture. Without a process group: the 1x1 mesh, on which nothing is ever sent.

    No attribute here or elsewhere holds the process group: a failing rank wakes its peers by letting go of it.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.meter = Meter()
        self._tag = 0

    @classmethod
    def of_default_group(cls, device: torch.device) -> Mesh:
        """The mesh over the process group that somebody else opened, or the 1x1 mesh without one."""
        return cls(current_rank(), current_world_size(), device) if dist.is_initialized() else cls(0, 1, device)

    @property
    def wire_device(self) -> torch.device:
        """Where message buffers live. Gloo moves host memory, also for ranks that share one GPU."""
        if self.size > 1 and dist.get_backend() == "gloo":
            return torch.device("cpu")
        return self.device

    def axes(self, config: DistriConfig, *, guided: bool) -> Axes:
        """How the ranks are laid out for a picture; `guided` says whether it runs both guidance branches."""
        branches = branch_ranks(guided=guided, config=config, ranks=self.size)
        return Axes(rank=self.rank, cfg_size=branches, patch_size=self.size // branches)

    def swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> Pending:
        """Start sending `sends[peer]` and filling `receives[peer]`; contiguous tensors on `wire_device`.

        Every rank must call this in the same order. The buffers belong to the transport until `Pending.wait`.
        """
        # Messages of one swap share a tag that no other swap in flight uses, so that they cannot overtake each other;
        # a rank at the picture's edge counts the swaps in which it has no part.
        self._tag = (self._tag + 1) % 2**30
        if not sends and not receives:
            return Pending([], self.meter)
        ops = [dist.P2POp(dist.irecv, tensor, peer, tag=self._tag) for peer, tensor in receives.items()]
        ops += [dist.P2POp(dist.isend, tensor, peer, tag=self._tag) for peer, tensor in sends.items()]
        self.meter.sent_bytes += sum(tensor.nbytes for tensor in sends.values())
        return Pending(dist.batch_isend_irecv(ops), self.meter)

    def broadcast(self, tensors: Sequence[torch.Tensor] | None, dtype: torch.dtype) -> list[torch.Tensor]:
        """Rank 0's `tensors` of `dtype` on every rank's device; the other ranks pass None and need not know shapes."""
        if self.size == 1:
            assert tensors is not None
            return [tensor.to(self.device, dtype) for tensor in tensors]
        header = torch.zeros(_HEADER, dtype=torch.int64)
        if tensors is not None:
            words = [len(tensors)]
            for tensor in tensors:
                words += [tensor.ndim, *tensor.shape]
            header[: len(words)] = torch.tensor(words)
        header = header.to(self.wire_device)
        dist.broadcast(header, src=0)
        words = header.tolist()
        count, at, shapes = words[0], 1, []
        for _ in range(count):
            shapes.append(words[at + 1 : at + 1 + words[at]])
            at += 1 + words[at]
        received = []
        for index, shape in enumerate(shapes):
            if tensors is None:
                tensor = torch.empty(shape, dtype=dtype, device=self.wire_device)
            else:
                tensor = tensors[index].to(self.wire_device, dtype).contiguous()
            dist.broadcast(tensor, src=0)
            received.append(tensor.to(self.device))
        return received


@contextmanager
def open_mesh(config: DistriConfig, *, device: str | torch.device = "auto") -> Iterator[Mesh]:
    """The mesh of this process for `config`: gloo on CPU, nccl on CUDA, closed again at the end.

    Joins the torchrun group that the environment describes; a group that is already open is used and left open;
    without torchrun's variables it is the 1x1 mesh. Raises MeshError if the group cannot be joined.
    """
    if dist.is_initialized():
        yield Mesh.of_default_group(device if isinstance(device, torch.device) else resolve_device(device))
        return
    where = device if isinstance(device, torch.device) else resolve_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Mesh(0, 1, where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    try:
        dist.init_process_group(backend_for(where), timeout=_LAUNCH_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise MeshError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} could not join its group: {error}"
        ) from error
    if config.verbose and current_rank() == 0:
        print(f"mesh: {current_world_size()} ranks over {dist.get_backend()} on {device_name(where)}")
    try:
        yield Mesh.of_default_group(where)
    finally:
        dist.destroy_process_group()
