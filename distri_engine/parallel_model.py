"""ParallelModel: a diffusers model that runs on all ranks of a mesh by the plan of a method. What the UNet and a
ControlNet have in common stands here: clock, exchange, trees of modules, guidance branches, and passing for the model
that is wrapped. What they make of a step is unet.py's and controlnet.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

import torch
from diffusers import ModelMixin
from torch import nn

from distri_engine.bands import Box
from distri_engine.config import AUTO, DistriConfig, SyncMode
from distri_engine.errors import EngineError, UnsupportedError
from distri_engine.exchange import Exchange
from distri_engine.layers.quick import can_quicken, quicken
from distri_engine.mesh import Axes, Mesh
from distri_engine.methods import METHODS, Method
from distri_engine.plan import PlanReport, Rule, apply_plan, check_supported, follow, share, structure
from distri_engine.step import StepClock

Value = TypeVar("Value")


class ParallelModel(nn.Module):
    """The wrapped model stays as it was and keeps its parameter names; every attribute that is not found here is its
    own. Methods that patch layers run a second tree of modules over the same weights.
    """

    def __init__(self, model: ModelMixin, config: DistriConfig, mesh: Mesh) -> None:
        super().__init__()
        self.model = model
        self.__module__ = type(model).__module__  # by which a pipeline notes where to find its components again
        self.mesh = mesh
        self.parallel_config = config
        self.unit = 2 ** (len(model.config.block_out_channels) - 1)  # latent rows
        self.clock = StepClock()
        self.report = PlanReport()
        self.followers: WeakSet[ParallelModel] = WeakSet()  # models that take part in the same pictures
        self._trees: dict[tuple[Rule, ...], nn.Module] = {}
        self._structure: tuple[nn.Module, ...] = ()
        self._tree: Callable[..., Any] = model.__call__
        self._adapters: tuple[Any, ...] = ()  # the layers that are wrapped in adapters
        self._active: tuple[object, ...] = ()  # which of them were at work in the last step
        self._exchange = Exchange(mesh, self.clock)
        self.begin(config)

    def begin(self, config: DistriConfig | None = None, *, guided: bool | None = None) -> None:
        """Start of a picture: rewinds the clock. Size, method and mode may differ from the last picture's.

        `guided` says whether the batch holds both guidance branches, unconditional first; default: as configured.
        """
        if config is not None:
            self.parallel_config = config
        self.guided = self.parallel_config.do_classifier_free_guidance if guided is None else guided
        self.method = METHODS[self.parallel_config.parallelism]
        self.axes: Axes = self.mesh.axes(self.parallel_config, guided=self.guided)
        self._size: tuple[int, ...] | None = None  # of the latents, known at the first step
        self._over = False
        warmup = self.parallel_config.warmup_steps
        if not self.method.displaced or self.parallel_config.mode is SyncMode.FULL_SYNC:
            self.clock.begin(None)
        elif warmup == AUTO:
            self.clock.begin(None, adaptive=True)
        else:
            self.clock.begin(warmup)
        for follower in self.followers:
            follower.begin(self.parallel_config, guided=self.guided)

    def end(self) -> None:
        """End of a picture: waits for messages still in flight. Every rank must get here after the same step."""
        self._exchange.drain()
        self._over = True
        for follower in self.followers:
            follower.end()

    def forget(self) -> None:
        """Free the exchange's buffers and let go of every message: the mesh is gone."""
        self._exchange.forget()
        for follower in self.followers:
            follower.forget()

    def buffer_bytes(self) -> int:
        """Bytes that hold activations of peers and messages to them, those of models in the same pictures included."""
        models = (self, *self.followers)
        return sum(sum(model._exchange.buffer_bytes().values()) for model in models)

    def moved(self) -> float | None:
        """How far activations moved in the last step, relative to their size, told by one layer; None if unknown."""
        return self._exchange.moved()

    # --- a step

    def _start_step(self, sample: torch.Tensor) -> tuple[Box, ...]:
        """sample: [B, 4, H, W] latents -> the boxes of all patch indices."""
        if self._over:
            raise EngineError(
                "the last picture has ended; call begin() before the next one, or the Distri pipeline in place of the "
                "diffusers pipeline that it wraps"
            )
        if self._size is not None and self._adapters:  # which may be switched between two steps
            self._follow_adapters()
        step = self.clock.tick()
        size = (int(sample.shape[2]), int(sample.shape[3]))
        for length, side in zip(size, ("rows", "columns"), strict=True):
            if length % self.unit:
                raise ValueError(f"{length} latent {side} are not a multiple of {self.unit}, the unit of this UNet")
        boxes = self.method.boxes(self.parallel_config, step, size, self.unit, self.axes.patch_size)
        if self._size is None:
            self._size = tuple(sample.shape)
            self._tree = self._tree_of(self.method)
            self._exchange.begin(self.parallel_config, self.axes, boxes)
        elif self._size != tuple(sample.shape):
            raise ValueError(
                f"latents changed from {self._size} to {tuple(sample.shape)} within a picture; call begin() first"
            )
        self._exchange.start_step()
        return boxes

    @property
    def split(self) -> bool:
        """Whether this rank runs one of the two guidance branches."""
        return self.axes.cfg_size == 2 and not self.method.alone

    def _half(self, batch: int, value: Value) -> Value:
        """This rank's guidance branch of everything in `value` that is `batch` long."""
        if not self.split:
            return value
        if batch % 2:
            raise ValueError(
                f"a batch of {batch} cannot be halved between the guidance branches; "
                "pass split_batch=False, or do_classifier_free_guidance=False"
            )

        def half(part: Any) -> Any:
            if isinstance(part, torch.Tensor) and part.ndim > 0 and part.shape[0] == batch:
                return part.chunk(2)[self.axes.cfg]
            if isinstance(part, list | tuple):
                return type(part)(half(item) for item in part)
            return {key: half(item) for key, item in part.items()} if isinstance(part, dict) else part

        return half(value)

    # --- the trees of modules

    @property
    def _quick(self) -> bool:
        """Whether blocks run in fewer operations. A GPU's queue hides what these cost, and what plans are made of are
        diffusers' own.
        """
        return self.mesh.device.type == "cpu"

    def _rules(self, method: Method) -> tuple[Rule, ...]:
        """The plan by which `method` patches this model; none: it runs as it is."""
        return method.rules

    def _tree_of(self, method: Method) -> Callable[..., Any]:
        rules = self._rules(method)
        self._adapters = ()
        if not rules and not (self._quick and can_quicken(self.model)):
            return self.model.__call__
        if rules:
            check_supported(self.model, whole=method.whole)
        current = structure(self.model)
        if current != self._structure:
            self._trees.clear()
            self._exchange.close_slots()
            self._structure = current
        if rules not in self._trees:
            self._trees[rules] = self._plant(rules)
        tree = self._trees[rules]
        follow(tree, self.model)
        self._adapters = tuple(module for module in current if hasattr(module, "base_layer"))
        self._active = self._at_work()
        return tree.__call__  # a bound method: an attribute that is a module would be registered

    def _follow_adapters(self) -> None:
        """Between two steps. Layers inside adapters may come and go with it, and what stale steps send was settled by
        the last synchronous one: there has to be another.
        """
        follow(self._trees[self._rules(self.method)], self.model)
        now = self._at_work()
        if now != self._active:
            self._active = now
            self._exchange.drain()
            self.clock.resume()

    def _at_work(self) -> tuple[object, ...]:
        return tuple((tuple(layer.active_adapters), layer.disable_adapters, layer.merged) for layer in self._adapters)

    def _plant(self, rules: tuple[Rule, ...]) -> nn.Module:
        tree = share(self.model)
        self.report = apply_plan(tree, rules, self._exchange)
        if self._quick:
            quicken(tree)
        if self.parallel_config.verbose and self.mesh.rank == 0:
            print(f"plan: {self.report}")
        return tree

    # --- a diffusers model for everybody else

    def compile(self, *_: Any, **__: Any) -> NoReturn:
        """Raises UnsupportedError."""
        raise UnsupportedError(
            "a model that runs on several ranks cannot be compiled; leave compile() out, or use the diffusers pipeline"
        )

    @property  # type: ignore[misc]  # read-only
    def __class__(self) -> Any:
        """The wrapped model's: pipelines and LoRA loaders ask what a component is, and pass over strangers silently."""
        return type(self.model)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped model's, with diffusers' own names."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the wrapped model, and so into every method's tree."""
        return self.model.load_state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The wrapped model's, with diffusers' own names."""
        return self.model.named_parameters(*args, **kwargs)
