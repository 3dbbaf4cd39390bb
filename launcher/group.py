"""Joining and leaving a generation of the process group: the only caller of init_process_group and
destroy_process_group in the launcher. When that happens is the hub's business.
"""

from __future__ import annotations

import contextlib
import gc
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from distri_engine.mesh import Mesh, backend_for

TIMEOUT = timedelta(minutes=30)  # of a collective; nobody idles in one, so it only bounds a single message


def join(
    generation: str, run_dir: Path, *, rank: int, world_size: int, device: torch.device, timeout: timedelta = TIMEOUT
) -> Mesh:
    """Meet the other ranks in `generation`, over loopback only. Leaves the previous one first.

    Every generation has a store of its own: ranks must never read the addresses of a dead one.
    """
    leave()
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.FileStore(str(run_dir / f"store-{generation}"), world_size)
    dist.init_process_group(backend_for(device), store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Mesh.of_default_group(device)


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
