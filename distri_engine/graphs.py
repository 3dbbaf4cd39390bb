"""Steps of a model that are replayed in place of being run: one graph for each kind of step, in an LRU. A graph reads
and writes fixed memory, and Python code in it has run once, when it was recorded. So every kind of step has memory of
its own for the inputs, for what a step leaves for the next one, and for the text's keys and values; and whatever Python
decides by is part of the kind, or of the model's imprint, or the step runs layer by layer.

Life of a kind. Its first step in a picture runs layer by layer, so that layers fill their caches; its second one is
recorded, and replayed at once; so are all that follow, in that picture and the next ones. A step that cannot be
recorded runs as before, then and always, and the log says so once.

Messages are never part of a graph. A displaced step is recorded in pieces, with cuts where messages start and where
the next ones are waited for; between two pieces Python starts and joins them, as in a step that is not replayed. So
ranks need not agree on who replays, what was sent and waited for is counted, and messages travel on a stream of their
own while pieces run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distri_engine.exchange import Exchange, Memory
from distri_engine.imprint import imprint
from distri_engine.layers.once import Once, Seen
from distri_engine.step import StepClock
from distri_engine.tape import Recorder, Tape

_log = logging.getLogger(__name__)

CAPACITY = 8  # kinds of steps that are kept
TEXT = "encoder_hidden_states"
_TENSORS = frozenset({"class_labels", "timestep_cond"})  # other inputs that a replayed step may have
_ADDED = "added_cond_kwargs"

Inputs = dict[str, torch.Tensor]  # by the name of the argument; what stands in a dictionary as "name.key"
Call = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """What tells a step from others that launch other work. Shapes of inputs come on top."""

    method: str
    trades: tuple[object, ...] = ()  # what decides in layers that trade with peers; nothing where none does
    layout: int | None = None  # of the exchange's buffers, for such layers


Key = tuple[Kind, tuple[object, ...]]  # and the inputs' shapes


def plain_inputs(
    sample: torch.Tensor, timestep: torch.Tensor | float | int, text: torch.Tensor, conditions: Mapping[str, Any]
) -> Inputs | None:
    """The arguments of a step as tensors on one device; None if there is one that a replayed step does not know: what
    ControlNets and IP-Adapters add, masks, dictionaries for attention processors.
    """
    device = sample.device
    if not isinstance(timestep, torch.Tensor):
        timestep = torch.full((1,), timestep, dtype=torch.float32, device=device)
    # The UNet turns it into float32 itself; integers and fractions then make steps of one kind.
    inputs = {"sample": sample, "timestep": timestep.reshape(-1).to(device, torch.float32), TEXT: text}
    for name, value in conditions.items():
        if name in _TENSORS and isinstance(value, torch.Tensor):
            inputs[name] = value
        elif name == _ADDED and isinstance(value, dict):
            inputs |= {f"{name}.{key}": part for key, part in value.items()}
        elif value is not None:
            return None
    known = all(isinstance(tensor, torch.Tensor) and tensor.device == device for tensor in inputs.values())
    return inputs if known else None


def arguments(inputs: Inputs) -> dict[str, Any]:
    """The way back: keyword arguments."""
    given: dict[str, Any] = {}
    for name, tensor in inputs.items():
        outer, _, key = name.partition(".")
        if key:
            given.setdefault(outer, {})[key] = tensor
        else:
            given[outer] = tensor
    return given


class Graph:
    """The steps of one kind, for inputs of one shape."""

    def __init__(self, inputs: Inputs, clock: StepClock) -> None:
        with torch.inference_mode(False):  # it serves pictures in and out of inference mode
            self.inputs = {name: torch.empty_like(tensor) for name, tensor in inputs.items()}
        self.picture = -1  # in which a step of this kind ran last layer by layer
        self.recorded = False
        self._clock = clock
        self._seen = {name: Seen(clock) for name in inputs}
        self._texts: list[tuple[Once, torch.Tensor]] = []  # what is computed once a picture, and where it is read
        self._memory: Memory = {}  # what steps leave for the next one
        self._kept: list[torch.Tensor] = []  # memory of the layers' own: theirs may be replaced, the graph's may not

    def fill(self, inputs: Inputs) -> None:
        """Show `inputs` to the graph."""
        for name, tensor in inputs.items():
            if self._seen[name].again(tensor):
                continue
            self._seen[name].note(tensor)
            self.inputs[name].copy_(tensor)
            if name == TEXT:
                for once, output in self._texts:
                    output.copy_(once.function(self.inputs[TEXT]))

    def run(self, call: Call) -> torch.Tensor:
        """Layer by layer, from where the graph will read."""
        self.picture = self._clock.picture
        return call(**arguments(self.inputs))

    def record(self, recorder: Recorder, call: Call, tree: nn.Module, exchange: Exchange | None) -> None:
        """Put the step down, without doing it. exchange: whose messages the layers of `tree` start and end, if any."""
        patched = [module.__dict__.get("forward") for module in tree.modules()]
        texts = []
        for layer in patched:
            if isinstance(layer, Once) and layer.knows(self.inputs[TEXT]):
                with torch.inference_mode(False):
                    layer.output = layer.output.clone()  # into which the next picture's goes, in any mode
                texts.append((layer, layer.output))
        self._kept = [tensor for layer in patched for tensor in getattr(layer, "kept", ())]
        self._tape = Tape(recorder)
        if exchange is None:
            self._output = self._tape.record(lambda: call(**arguments(self.inputs)))
        else:
            with exchange.recorded(self._tape.cut):
                self._output = self._record_memory(call, exchange)
        self._texts, self.recorded = texts, True

    def _record_memory(self, call: Call, exchange: Exchange) -> torch.Tensor:
        with torch.inference_mode(False):
            self._memory = {name: tensor.clone() for name, tensor in exchange.carried().items()}
        exchange.carry(self._memory)

        def step() -> torch.Tensor:
            output = call(**arguments(self.inputs))
            for name, tensor in exchange.carried().items():
                # Made by the step alone, like `moved`, or handed on from step to step.
                if (place := self._memory.setdefault(name, tensor)) is not tensor:
                    place.copy_(tensor)
            return output

        output = self._tape.record(step)
        exchange.carry(self._memory)  # not what the step, which has not happened, seemed to leave
        return output

    def replay(self, exchange: Exchange | None) -> torch.Tensor:
        """Do it: a result of its own, which the next replay leaves alone."""
        if exchange is not None:
            for name, tensor in exchange.carried().items():
                if (place := self._memory[name]) is not tensor:  # the last step was none of this graph
                    place.copy_(tensor)
            exchange.carry(self._memory)
        self._tape.replay()
        return self._output.clone()


class Graphs:
    """The graphs of one model on one rank, least recently used first."""

    def __init__(self, recorder: Recorder | None, clock: StepClock) -> None:
        self.recorder = recorder
        self._clock = clock
        self._graphs: dict[Key, Graph] = {}
        self._refused: set[Key] = set()  # kinds that could not be recorded
        self._imprint: tuple[object, ...] | None = None
        self._known = -1  # the picture in which it was taken
        self._adapted = False  # whether the model has adapters

    def __len__(self) -> int:
        return sum(graph.recorded for graph in self._graphs.values())

    def know(self, model: nn.Module) -> bool:
        """Whether steps of `model` can be replayed; graphs of what it was before are let go. Looks once a picture, or
        at every step of a model with adapters, which may be switched in between.
        """
        if self._known != self._clock.picture or self._adapted:
            now = imprint(model)
            if now != self._imprint:
                self.forget()
                self._adapted = any(hasattr(module, "base_layer") for module in model.modules())
            self._imprint, self._known = now, self._clock.picture
        return self._imprint is not None

    def keep(self, layout: int) -> None:
        """Let go of graphs that send from, or read, buffers that are gone: those of another layout."""
        for key in [key for key in self._graphs if key[0].layout not in (None, layout)]:
            del self._graphs[key]

    def run(self, kind: Kind, inputs: Inputs, call: Call, tree: nn.Module, exchange: Exchange | None) -> torch.Tensor:
        """A step of this kind: what `call(**arguments(inputs))` returns, which runs the layers of `tree`."""
        key = (kind, tuple((name, x.shape, x.stride(), x.dtype) for name, x in inputs.items()))
        if self.recorder is None or key in self._refused:
            return call(**arguments(inputs))
        graph = self._graphs.pop(key, None) or Graph(inputs, self._clock)
        self._graphs[key] = graph  # the last one used
        if len(self._graphs) > CAPACITY:
            del self._graphs[next(iter(self._graphs))]
        graph.fill(inputs)
        if not graph.recorded:
            if graph.picture != self._clock.picture:
                return graph.run(call)
            try:
                graph.record(self.recorder, call, tree, exchange)
            except Exception as error:
                del self._graphs[key]
                self._refused.add(key)
                reason = (str(error).splitlines() or [""])[0]
                _log.warning("steps of this kind go on without a CUDA graph: %s: %s", type(error).__name__, reason)
                return call(**arguments(inputs))
        return graph.replay(exchange)

    def forget(self) -> None:
        """Free what graphs hold."""
        self._graphs, self._refused = {}, set()
        self._imprint, self._known, self._adapted = None, -1, False
