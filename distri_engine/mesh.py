"""Where this rank sits: axes cfg x patch, device, process group, and how ranks talk. The only file
that names backends and devices or reads the torchrun variables; what is said over it is exchange.py's business.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from distri_engine.bands import branch_ranks, spread, used_ranks
from distri_engine.config import DistriConfig
from distri_engine.errors import MeshError
from distri_engine.shared_memory import HostLinks, listen
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

    def __init__(self, waits: Sequence[Callable[[], object]], meter: Meter) -> None:
        self._waits = list(waits)
        self._meter = meter

    def wait(self) -> None:
        """Block until the buffers may be read and written again. Raises RuntimeError if a peer is lost."""
        if not self._waits:
            return
        with self._meter.waiting():
            for wait in self._waits:
                wait()
        self._waits.clear()


class Mesh:
    """The ranks that make one picture. Without a process group: the 1x1 mesh, on which nothing is ever sent.

    No attribute here or elsewhere holds the process group: a failing rank wakes its peers by letting go of it.
    """

    def __init__(self, rank: int, size: int, device: torch.device, *, shared_memory: bool = True) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        # Where message buffers live. Gloo moves host memory, also for ranks that share one GPU.
        over_host = size > 1 and dist.get_backend() == "gloo"
        self.wire_device = torch.device("cpu") if over_host else device
        self.meter = Meter()
        self._swaps = 0
        self._links = _link_host(rank, size) if size > 1 and shared_memory and self.wire_device.type == "cpu" else None

    @classmethod
    def of_default_group(cls, device: torch.device, *, shared_memory: bool = True) -> Mesh:
        """The mesh over the process group that somebody else opened, or the 1x1 mesh without one.

        Host memory travels through shared memory where all ranks are on one host, unless `shared_memory` is False.
        """
        if not dist.is_initialized():
            return cls(0, 1, device)
        return cls(current_rank(), current_world_size(), device, shared_memory=shared_memory)

    def first(self, count: int) -> Mesh:
        """The mesh of the first `count` ranks, this one among them, over the same connections. The others rest."""
        if count == 1:
            return Mesh(0, 1, self.device)
        part = copy(self)
        part.size, part.meter = count, Meter()
        return part

    def close(self) -> None:
        """Hang up, so that a peer that waits for this rank is woken. The process group is its opener's to close."""
        if self._links is not None:
            self._links.close()

    def axes(self, config: DistriConfig, *, guided: bool) -> Axes:
        """How the ranks are laid out for a picture; `guided` says whether it runs both guidance branches."""
        if config.ranks not in (None, self.size) and used_ranks(config, config.ranks) != self.size:
            raise ValueError(
                f"ranks {config.ranks} of a group of {self.size}: only the Engine lets some of them rest; "
                f"start {config.ranks} with torchrun, or leave ranks out"
            )
        branches = branch_ranks(guided=guided, config=config, ranks=self.size)
        return Axes(rank=self.rank, cfg_size=branches, patch_size=self.size // branches)

    def swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> Pending:
        """Start sending `sends[peer]` and filling `receives[peer]`; contiguous tensors on `wire_device`.

        Every rank must call this in the same order. The buffers belong to the transport until `Pending.wait`.
        """
        # Messages of one swap share a tag that no other swap in flight uses, so that they cannot overtake each other;
        # a rank at the picture's edge counts the swaps in which it has no part. Ranks that rest do not count, so that
        # meshes of other sizes have tags of their own.
        self._swaps = (self._swaps + 1) % 2**20
        tag = self.size << 20 | self._swaps
        if not sends and not receives:
            return Pending([], self.meter)
        self.meter.sent_bytes += sum(tensor.nbytes for tensor in sends.values())
        if self._links is not None:
            for peer, tensor in sends.items():
                self._links.send(tag, peer, tensor)
            receive = self._links.receive
            return Pending([partial(receive, tag, peer, into) for peer, into in receives.items()], self.meter)
        ops = [dist.P2POp(dist.irecv, tensor, peer, tag=tag) for peer, tensor in receives.items()]
        ops += [dist.P2POp(dist.isend, tensor, peer, tag=tag) for peer, tensor in sends.items()]
        return Pending([work.wait for work in dist.batch_isend_irecv(ops)], self.meter)

    @property
    def has_boards(self) -> bool:
        """Whether ranks can write where all others read, so that stale steps need no messages."""
        return self._links is not None

    def take_place(self, count: int) -> tuple[int, torch.Tensor]:
        """A place on this rank's board: its offset, and its bytes, [count], to write to. Only if there are boards."""
        assert self._links is not None
        return self._links.board.take(count)

    def give_place(self, offset: int, count: int) -> None:
        """Give a place back."""
        assert self._links is not None
        self._links.board.give_back(offset, count)

    def look(self, rank: int, offset: int, count: int) -> torch.Tensor:
        """What stands on the board of `rank`, in place: [count] bytes, to read."""
        assert self._links is not None
        return self._links.look(rank, offset, count)

    def trim(self) -> None:
        """Give back the transport's memory: the next messages will have other sizes."""
        if self._links is not None:
            self._links.trim()

    def all_reduce(self, tensor: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
        """The sum of `tensor` over `ranks`, this one among them: the same bits on each of them.

        Scatter, then gather: rank i adds everybody's i-th chunk, in the order of `ranks` and in float32 at least, and
        tells the others. Each sends 2(n-1)/n of the elements. Every rank of the mesh must call this in the same order.
        """
        if len(ranks) == 1:
            return tensor
        peers = [rank for rank in ranks if rank != self.rank]
        flat = tensor.to(self.wire_device).reshape(-1).contiguous()
        parts = zip(ranks, spread(len(flat), len(ranks)), strict=True)
        chunks = {rank: slice(part.start, part.stop) for rank, part in parts if part}
        own = chunks.get(self.rank, slice(0))  # nothing, if there are fewer elements than ranks
        listeners = peers if self.rank in chunks else []

        terms = {rank: torch.empty_like(flat[own]) for rank in listeners}
        self.swap({rank: flat[chunks[rank]] for rank in peers if rank in chunks}, terms).wait()
        terms[self.rank] = flat[own]
        wide = torch.promote_types(flat.dtype, torch.float32)
        total = sum(terms[rank].to(wide) for rank in ranks if rank in terms)

        whole = torch.empty_like(flat)
        whole[own] = total
        sums = {rank: whole[chunks[rank]] for rank in peers if rank in chunks}
        self.swap(dict.fromkeys(listeners, whole[own]), sums).wait()
        return whole.view(tensor.shape).to(tensor.device)

    def refuse(self, reason: str) -> None:
        """On rank 0, in place of `broadcast`: what was to be broadcast could not be made. The others raise `reason`."""
        if self.size > 1:
            text = torch.tensor(list(reason.encode()), dtype=torch.uint8)
            header = torch.zeros(_HEADER, dtype=torch.int64)
            header[0], header[1] = -1, len(text)
            self._tell(header.to(self.wire_device))
            self._tell(text.to(self.wire_device))

    def _tell(self, tensor: torch.Tensor) -> None:
        """Rank 0's `tensor` into everybody's."""
        listeners = range(1, self.size) if self.rank == 0 else ()
        self.swap(dict.fromkeys(listeners, tensor), {} if self.rank == 0 else {0: tensor}).wait()

    def broadcast(self, tensors: Sequence[torch.Tensor] | None, dtype: torch.dtype) -> list[torch.Tensor]:
        """Rank 0's `tensors` of `dtype` on every rank's device; the other ranks pass None and need not know shapes.

        Raises MeshError on the others if rank 0 calls `refuse` instead.
        """
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
        self._tell(header)
        words = header.tolist()
        if words[0] < 0:
            text = torch.empty(words[1], dtype=torch.uint8, device=self.wire_device)
            self._tell(text)
            raise MeshError(f"rank 0 refused: {bytes(text.tolist()).decode(errors='replace')}")
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
            self._tell(tensor)
            received.append(tensor.to(self.device))
        return received


def host_identity() -> str:
    """What tells this host from others: its name and its boot, not its address. The variable DISTRI_HOST_ID declares
    another one, for ranks that are to talk as if they were on different hosts.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return os.environ.get("DISTRI_HOST_ID") or f"{socket.gethostname()} {boot}"


def _link_host(rank: int, size: int) -> HostLinks | None:
    """Shared-memory links to all ranks, or None on every rank if they are not on one host. A collective call."""
    host = torch.tensor(list(hashlib.sha256(host_identity().encode()).digest()), dtype=torch.int64)
    everybody = [torch.empty_like(host) for _ in range(size)]
    dist.all_gather(everybody, host)
    if any(not torch.equal(other, host) for other in everybody):
        return None
    folder = tempfile.mkdtemp(prefix="distri-") if rank == 0 else ""  # for the user alone
    try:
        path = torch.zeros(4096, dtype=torch.uint8)
        path[: len(folder.encode())] = torch.tensor(list(folder.encode()), dtype=torch.uint8)
        dist.broadcast(path, src=0)
        place = Path(bytes(path.tolist()).rstrip(b"\0").decode())
        # Containers of one host may share a kernel and not a file system, and a path may be too long for a socket:
        # either everybody can listen, or nobody does.
        try:
            listener = listen(place, rank, size, _LAUNCH_TIMEOUT.total_seconds())
        except OSError:
            listener = None
        able = torch.tensor([listener is not None], dtype=torch.int64)
        dist.all_reduce(able, op=dist.ReduceOp.MIN)
        if listener is None or not able.item():
            if listener is not None:
                listener.close()
            return None
        with listener:
            links = HostLinks.meet(place, rank, size, listener, _LAUNCH_TIMEOUT.total_seconds())
        dist.all_reduce(able)  # everybody has met: the folder may go
        return links
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


_openers = 0  # of the process group, if it was opened here: the last one to leave closes it
# Where ranks find each other. It stays open when a group is left, and every group meets in a corner of its own: a rank
# that is early for the next group must neither lose it nor read the addresses of the last one.
_store: dist.Store | None = None
_groups = 0  # that were joined here


@contextmanager
def open_mesh(config: DistriConfig, *, device: str | torch.device = "auto") -> Iterator[Mesh]:
    """The mesh of this process for `config`: gloo on CPU, nccl on CUDA, closed again at the end.

    Joins the torchrun group that the environment describes; a group that somebody else opened is used and left open;
    without torchrun's variables it is the 1x1 mesh. Raises MeshError if the group cannot be joined.
    """
    global _openers
    where = device if isinstance(device, torch.device) else resolve_device(device)
    ours = _openers > 0 or not dist.is_initialized()
    if ours and _openers == 0:
        ours = _join(where)
        if ours and config.verbose and current_rank() == 0:
            print(f"mesh: {current_world_size()} ranks over {dist.get_backend()} on {device_name(where)}")
    _openers += ours
    try:
        mesh = Mesh.of_default_group(where)
        try:
            yield mesh
        finally:
            mesh.close()
    finally:
        _openers -= ours
        if ours and _openers == 0:
            dist.destroy_process_group()


def _join(device: torch.device) -> bool:
    """Join the group that torchrun's variables describe; False if there are none."""
    global _store, _groups
    names = ("RANK", "WORLD_SIZE")
    missing = [name for name in names if name not in os.environ]
    if len(missing) == 2:
        return False
    if missing:
        raise MeshError(f"{missing[0]} is not set although its companion is; start this script with torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, size = (os.environ[name] for name in names)
    try:
        if _store is None:
            _store, _, _ = next(dist.rendezvous("env://", timeout=_LAUNCH_TIMEOUT))
        corner = dist.PrefixStore(f"group {_groups}", _store)
        _groups += 1
        dist.init_process_group(
            backend_for(device), store=corner, rank=int(rank), world_size=int(size), timeout=_LAUNCH_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MeshError(f"rank {rank} of {size} could not join its group: {reason}") from error
    return True
