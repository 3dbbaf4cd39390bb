"""What CUDA graphs are to a GPU, for the CPU, and two ranks in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distri_engine.mesh import Mesh, Pending

# They make Python wait for a number, which a stream that is being captured never gives.
_WAITS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero"}


def tensors_of(*values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def place_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class DispatchRecorder:
    """Puts down every operation with the very tensors it had. Replaying runs these operations again, into the memory
    they wrote to, and no line of Python in between: what Python has changed since is not seen, as in a CUDA graph. And
    as there, recording itself changes nothing: memory from outside is as it was, and what was made meanwhile is rubbish
    until it is replayed.
    """

    def __init__(self, *, fail_in: int | None = None) -> None:
        self.fail_in = fail_in  # the piece, from 0, in which the "device" refuses
        self.recordings, self.replays = 0, 0  # replays of pieces
        self.outside: set[int] = set()  # memory that the last recording read or wrote and did not make
        self._piece: _Piece | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.recordings += 1
        self.outside = set()
        self._pieces = 0
        self._made: dict[int, torch.Tensor] = {}  # storage -> a tensor that keeps it alive
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        try:
            yield
        finally:
            if self._piece is not None:
                self.end()
            for storage, content in self._before.values():
                storage.copy_(content)
            for tensor in self._made.values():
                tensor.untyped_storage().fill_(255)

    def begin(self) -> None:
        assert self._piece is None
        self._piece = _Piece(self)
        self._piece.__enter__()
        self._pieces += 1

    def end(self) -> Callable[[], None]:
        piece, self._piece = self._piece, None
        assert piece is not None
        piece.__exit__(None, None, None)
        return piece.replay

    def see(self, func: Any, args: Any, kwargs: Any) -> None:
        """Before an operation."""
        if func._schema.name in _WAITS or (self._pieces - 1 == self.fail_in and len(self._piece.operations) == 5):  # type: ignore[union-attr]
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")
        for tensor in tensors_of(args, kwargs):
            place = place_of(tensor)
            if place not in self._made:
                self.outside.add(place)
        named = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tensors_of(named.get(argument.name)):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self._made:
                        self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def made(self, tensor: torch.Tensor) -> None:
        """After an operation."""
        if place_of(tensor) not in self.outside:
            self._made.setdefault(place_of(tensor), tensor)


class _Piece(TorchDispatchMode):
    def __init__(self, recorder: DispatchRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.operations: list[tuple[Any, Any, Any, list[torch.Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.recorder.see(func, args, kwargs)
        result = func(*args, **kwargs)
        places = {place_of(tensor) for tensor in tensors_of(args, kwargs)}
        new = [tensor for tensor in tensors_of(result) if place_of(tensor) not in places]
        for tensor in new:
            self.recorder.made(tensor)
        if new or func._schema.is_mutable:  # not mere views
            own = [tensor if place_of(tensor) not in places else None for tensor in tensors_of(result)]
            self.operations.append((func, args, kwargs, own))
        return result

    @torch.inference_mode()  # in which tensors of any mode may be written
    def replay(self) -> None:
        self.recorder.replays += 1
        for func, args, kwargs, results in self.operations:
            for old, new in zip(results, tensors_of(func(*args, **kwargs)), strict=True):
                if old is not None:
                    assert old.stride() == new.stride()
                    old.copy_(new)


class EchoMesh(Mesh):
    """Rank 0 of 2 in one process: its peer sends what it is sent. A message holds what stood in its buffer when it was
    started, and arrives when it is waited for, not before.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(0, 1, device or torch.device("cpu"))  # one rank: there is no process group to ask
        self.size = 2
        self.boards = False
        self._number = 0

    @property
    def has_boards(self) -> bool:
        return self.boards

    def swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> Pending:
        self.meter.sent_bytes += sum(tensor.nbytes for tensor in sends.values())
        self._number += 1
        number = self._number
        left = {peer: tensor.clone() for peer, tensor in sends.items()}
        for tensor in receives.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)

        def arrive() -> None:
            for peer, tensor in receives.items():
                if tensor.shape == left[peer].shape:
                    tensor.copy_(left[peer])
                else:  # a neighbour who has fewer or more rows to say: bytes that are numbers of any type
                    tensor.fill_(number % 60)

        return Pending([arrive], self.meter)
