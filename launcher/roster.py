"""Who is in the group: which ranks are loaded, which generation they are to join, and whether they rest. What they work
on is hub.py's business.
"""

from __future__ import annotations

from launcher import messages as m
from launcher.schema import ModelInfo


class Roster:
    """The ranks of one hub. `nonce` makes the names of its generations unique. Raises ValueError for what cannot be."""

    def __init__(self, world: int, nonce: str) -> None:
        self.world = world
        self.hellos: dict[int, m.Hello] = {}
        self.resting = False
        self._nonce = nonce
        self._number = 0
        self._ready: set[int] = set()

    @property
    def generation(self) -> str:
        """Name of the current generation."""
        return f"{self._nonce}-{self._number}"

    @property
    def loaded(self) -> bool:
        """Whether every rank has its weights."""
        return len(self.hellos) == self.world and not any(hello.error for hello in self.hellos.values())

    @property
    def complete(self) -> bool:
        """Whether every rank is in the current generation."""
        return len(self._ready) == self.world

    @property
    def breakable(self) -> bool:
        """Whether the ranks can leave a group and meet in another. A broken NCCL group leaves no rank to be trusted."""
        return all(hello.backend == "gloo" for hello in self.hellos.values())

    @property
    def backend(self) -> str:
        """Over what the ranks talk: gloo or nccl."""
        return "gloo" if self.breakable else "nccl"

    @property
    def on_cuda(self) -> bool:
        """Whether the ranks compute on GPUs."""
        return any(hello.device_kind == "cuda" for hello in self.hellos.values())

    @property
    def device(self) -> str:
        """Rank 0's device, for people; empty until its weights are loaded."""
        return self.hellos[0].device if 0 in self.hellos else ""

    @property
    def model(self) -> ModelInfo | None:
        """What rank 0 has loaded."""
        hello = self.hellos.get(0)
        if hello is None or hello.error:
            return None
        return ModelInfo(
            name=hello.model,
            path=hello.path,
            demo=hello.demo,
            default_size=hello.default_size,
            size_multiple=hello.size_multiple,
            max_pixels=hello.max_pixels,
        )

    def meet(self, rank: int, hello: m.Hello) -> None:
        """A rank has its weights, or says why not."""
        if rank in self.hellos:
            raise ValueError("a second HELLO")
        if (hello.proto, hello.world) != (m.PROTOCOL, self.world):
            raise ValueError(f"protocol {hello.proto}, {hello.world} ranks; here it is {m.PROTOCOL}, {self.world}")
        self.hellos[rank] = hello
        if self.loaded and len({hello.model for hello in self.hellos.values()}) > 1:
            raise ValueError("the ranks loaded different models")

    def next_generation(self) -> m.Join:
        """Everybody is to join a new generation."""
        self._number += 1
        self._ready.clear()
        self.resting = False
        return m.Join(gen=self.generation)

    def seat(self, rank: int, generation: str) -> None:
        """A rank has joined."""
        if generation != self.generation or rank in self._ready:
            raise ValueError(f"READY for generation {generation}")
        self._ready.add(rank)
