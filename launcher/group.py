"""Joining and leaving a generation of the process group: the only caller of init_process_group and
destroy_process_group in the launcher. When that happens is the hub's business.
"""

from __future__ import annotations

import contextlib
import gc
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from distri_engine.mesh import Mesh, backend_for
from launcher.nodes import Nodes

if TYPE_CHECKING:
    from launcher.node_store import NodeStore

TIMEOUT = timedelta(minutes=30)  # of a collective; nobody idles in one, so it only bounds a single message


def join(
    generation: str, run_dir: Path, *, rank: int, world_size: int, device: torch.device, timeout: timedelta = TIMEOUT
) -> Mesh:
    """Meet the other ranks in `generation`: over loopback only, or the interface that `main` chose for several nodes.
    Leaves the previous one first.

    Every generation has a store of its own: ranks must never read the addresses of a dead one.
    """
    leave()
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _store(generation, run_dir, rank, world_size)
    dist.init_process_group(backend_for(device), store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Mesh.of_default_group(device)


_node_store: NodeStore | None = None  # of this generation


def _store(generation: str, run_dir: Path, rank: int, world_size: int) -> dist.Store:
    global _node_store
    if Nodes.here() is None:
        return dist.FileStore(str(run_dir / f"store-{generation}"), world_size)
    from launcher.node_store import NodeStore

    family, member = "generation/", f"generation/{generation}/"
    _node_store = NodeStore(run_dir)
    if rank == 0:
        _node_store.keep(family, member)  # what older ones left
    return dist.PrefixStore(member, _node_store)


def leave() -> None:
    """Let go of the group. Whoever waits for this rank in a collective fails at once, if nobody keeps a reference.

    ProcessGroupGloo cannot be aborted: it is the last reference that closes the connections.
    """
    if not dist.is_initialized():
        return
    # A broken group may refuse to be destroyed in order; it is forgotten either way.
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
    gc.collect()
    if _node_store is not None:
        _node_store.close()
