"""torch's store over a socket in the run directory, instead of its own TCP server, which listens on all interfaces and
believes everybody: its client, and the rendezvous of torchrun over it. What is stored where is torch's business.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist

from launcher import wire

SOCKET = "store"  # in the run directory
_CONNECT_S = 60.0
_TIMEOUT = timedelta(minutes=5)


class NodeStore(dist.Store):
    """torch's interface of a store. Raises RuntimeError when node 0 is gone, DistStoreError when a wait is over."""

    _open: ClassVar[set[NodeStore]] = set()  # torch refers to the C++ half only, which is nothing without this one

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._open.add(self)
        self.set_timeout(_TIMEOUT)
        self._sock = wire.connect(run_dir / SOCKET, _CONNECT_S)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Hang up."""
        self._open.discard(self)
        wire.close(self._sock)

    def _ask(self, do: str, *keys: str, **about: Any) -> Any:
        try:
            with self._lock:
                wire.send(self._sock, {"do": do, "keys": list(keys), **about})
                answer = wire.receive(self._sock)
        except OSError as error:
            raise RuntimeError(f"the store of node 0 is gone: {error}") from error
        if answer is None:
            raise RuntimeError("the store of node 0 is gone")
        return answer["value"]

    def set(self, key: str, value: str | bytes) -> None:
        self._ask("set", key, value=_text(value))

    def get(self, key: str) -> bytes:
        return self.multi_get([key])[0]

    def add(self, key: str, amount: int) -> int:
        return int(self._ask("add", key, amount=amount))

    def append(self, key: str, value: str | bytes) -> None:
        self._ask("append", key, value=_text(value))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        return base64.b64decode(self._ask("compare_set", key, expected=_text(expected), value=_text(desired)))

    def check(self, keys: Sequence[str]) -> bool:
        return None not in self._ask("get", *keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        end = time.monotonic() + (timeout or self.timeout).total_seconds()  # type: ignore[attr-defined]
        while missing := self._ask("wait", *keys):
            if time.monotonic() > end:
                raise dist.DistStoreError(f"{missing[0]} was not stored in time")

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        self.wait(keys)
        return [base64.b64decode(value) for value in self._ask("get", *keys)]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def delete_key(self, key: str) -> bool:
        return bool(self._ask("delete", key)[0])

    deleteKey = delete_key  # so torch calls it from C++

    def num_keys(self) -> int:
        return int(self._ask("count"))

    getNumKeys = num_keys

    def has_extended_api(self) -> bool:
        return False

    def keep(self, family: str, member: str) -> None:
        """Forget the keys that begin with `family`, but not with `member`."""
        self._ask("keep", family, member)


def _text(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else bytes(value)).decode()


def register(backend: str, run_dir: Path) -> None:
    """Have torchrun know its own dynamic rendezvous over this store as --rdzv-backend `backend`."""
    from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, create_handler

    class Backend(C10dRendezvousBackend):
        @property
        def name(self) -> str:
            return backend

    def make(parameters: RendezvousParameters) -> DynamicRendezvousHandler:
        store = NodeStore(run_dir)
        return create_handler(store, Backend(store, parameters.run_id), parameters)

    rendezvous_handler_registry.register(backend, make)
