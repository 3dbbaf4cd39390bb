"""What one rank does for all: rank 0 encodes the text, runs the caller's step-end callbacks and the safety checker, and
tells the others what came of it, so that every rank goes on alike. If it fails, nobody is left waiting.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, NoReturn

import torch

from distri_engine.errors import UnsupportedError
from distri_engine.mesh import Mesh

_UNCHANGED = object()
# What a callback may set on the pipeline, as diffusers documents it: stop, or guide from now on in another way.
_SWITCHES = ("_interrupt", "_guidance_scale", "_guidance_rescale")


def tell(mesh: Mesh, make: Callable[[], Sequence[torch.Tensor]], dtype: torch.dtype) -> list[torch.Tensor]:
    """What `make` returns on rank 0, as `dtype` on every rank; nobody else calls it.

    If it raises, so does every rank: rank 0 its exception, the others MeshError.
    """
    made = None
    if mesh.rank == 0:
        try:
            made = make()
        except BaseException as error:
            mesh.refuse(f"{type(error).__name__}: {error}")
            raise
    return mesh.broadcast(made, dtype)


@contextmanager
def replaced(target: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    """Put `functions` in place of methods of one object, for a while."""
    before = {name: target.__dict__.get(name, _UNCHANGED) for name in functions}
    for name, function in functions.items():
        setattr(target, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is _UNCHANGED:
                delattr(target, name)
            else:
                setattr(target, name, function)


@contextmanager
def _alone(pipe: Any) -> Iterator[None]:
    """For a callback, which runs on rank 0 only: what all ranks do together is done here alone, as far as it can be."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise UnsupportedError("a callback runs on rank 0 and cannot call the UNet, which all ranks run together")

    with ExitStack() as stack:
        stack.enter_context(replaced(pipe.unet, forward=refuse))
        for target, name in ((pipe, "encode_prompt"), (pipe, "run_safety_checker"), (pipe.vae, "decode")):
            if hasattr(target, name):
                stack.enter_context(replaced(target, **{name: MethodType(getattr(type(target), name), target)}))
        yield


class TextRelay:
    """In place of `pipeline.encode_prompt`: rank 0 encodes, the others need no text encoders."""

    def __init__(self, encode: Callable[..., Any], mesh: Mesh, dtype: torch.dtype, *, guided: bool) -> None:
        self.encode, self.mesh, self.dtype, self.guided = encode, mesh, dtype, guided

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """What diffusers passes and expects: embeddings, those of the negative prompt second. The latter are None where
        guidance is off and nobody needs them.
        """
        every = 1 if self.guided else 2
        told = tell(self.mesh, lambda: self.encode(*args, **kwargs)[::every], self.dtype)
        return tuple(told) if self.guided else tuple(part for known in told for part in (known, None))


class SafetyRelay:
    """In place of `pipeline.run_safety_checker`: rank 0 looks at the pictures, everybody blackens the same ones."""

    def __init__(self, check: Callable[..., Any], mesh: Mesh) -> None:
        self.check, self.mesh = check, mesh

    def __call__(self, image: torch.Tensor, *args: Any) -> tuple[torch.Tensor, list[bool] | None]:
        """image: [B, 3, H, W] -> the same with unsafe pictures black, and which they are; None without a checker."""

        def look() -> list[torch.Tensor]:
            flags = self.check(image.clone(), *args)[1]
            return [torch.tensor([] if flags is None else [float(flag) for flag in flags])]

        flags = [bool(flag) for flag in tell(self.mesh, look, torch.float32)[0]]
        for index, flag in enumerate(flags):
            if flag:
                image[index] = 0
        return image, flags or None


class StepRelay:
    """In place of a step-end callback: it runs on rank 0, and its changes reach every rank.

    These are the tensors that diffusers hands out (`pipeline._callback_tensor_inputs`), returned or written in place,
    and the switches `_interrupt`, `_guidance_scale` and `_guidance_rescale`. What else it does to rank 0 stays there.
    """

    def __init__(self, callback: Callable[..., Any], asked: Sequence[str], mesh: Mesh) -> None:
        self.callback, self.asked, self.mesh = callback, asked, mesh

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """tensors: all that the pipeline can hand out -> the same after the callback, on every rank alike."""
        guided = pipe.do_classifier_free_guidance
        switches = [name for name in _SWITCHES if hasattr(pipe, name)]
        result = dict(tensors)

        def call() -> list[torch.Tensor]:
            before = {name: value.clone() if torch.is_tensor(value) else value for name, value in tensors.items()}
            scale, adapters = _lora_scale(pipe), _adapters(pipe)
            with _alone(pipe):
                returned = self.callback(pipe, index, timestep, {name: tensors[name] for name in self.asked})
            if not isinstance(returned, dict):
                raise TypeError(f"callback_on_step_end returned {returned!r}; return a dictionary, at least {{}}")
            if _lora_scale(pipe) != scale:
                raise UnsupportedError(
                    "a callback cannot change cross_attention_kwargs on all ranks; use set_adapters before the picture"
                )
            if _adapters(pipe) != adapters:
                raise UnsupportedError(
                    "a callback runs on rank 0 and cannot switch adapters on all ranks; use set_adapters before the "
                    "picture"
                )
            result.update({name: value for name, value in returned.items() if name in tensors})
            changed = [_differs(name, before[name], result[name]) for name in tensors]
            return [torch.tensor([*changed, *(getattr(pipe, name) for name in switches)], dtype=torch.float64)]

        try:
            news = tell(self.mesh, call, torch.float64)[0].tolist()
        except BaseException:
            pipe.unet.end()  # every rank is here, and the next picture finds no message of this one
            raise
        for name, changed in zip(tensors, news, strict=False):
            if changed:
                kind = tensors[name].dtype if torch.is_tensor(tensors[name]) else pipe.unet.dtype
                result[name] = self.mesh.broadcast([result[name]] if self.mesh.rank == 0 else None, kind)[0]
        for name, value in zip(switches, news[len(tensors) :], strict=True):
            setattr(pipe, name, bool(value) if name == "_interrupt" else value)
        if pipe.do_classifier_free_guidance != guided:
            # The batch changes with it, and who computes what: warm-up begins again.
            pipe.unet.end()
            pipe.unet.begin(guided=pipe.do_classifier_free_guidance)
        return result

    def in_place(self, pipe: Any) -> Callable[[int, Any, torch.Tensor], None]:
        """The same for the older `callback(step, timestep, latents)`, which returns nothing."""
        legacy = self.callback

        def returning(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            legacy(index, timestep, tensors["latents"])
            return {}

        self.callback = returning

        def call(index: int, timestep: Any, latents: torch.Tensor) -> None:
            latents.copy_(self(pipe, index, timestep, {"latents": latents})["latents"])

        return call


def relay_callbacks(pipe: Any, mesh: Mesh, call: dict[str, Any]) -> None:
    """Have the callbacks in a call's arguments run on rank 0 alone, and every rank follow.

    Raises ValueError for tensors that the pipeline does not hand out.
    """
    known = pipe._callback_tensor_inputs
    asked = call.pop("callback_on_step_end_tensor_inputs", None)
    if (callback := call.get("callback_on_step_end")) is not None:
        # diffusers' own callback objects say themselves what they want
        asked = getattr(callback, "tensor_inputs", ["latents"] if asked is None else asked)
        if unknown := [name for name in asked if name not in known]:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs {unknown[0]!r} is unknown; choose of: {', '.join(known)}"
            )
        call["callback_on_step_end"] = StepRelay(callback, asked, mesh)
        call["callback_on_step_end_tensor_inputs"] = known  # every one of them may be returned
    if (callback := call.get("callback")) is not None:
        call["callback"] = StepRelay(callback, ["latents"], mesh).in_place(pipe)
        call.setdefault("callback_steps", 1)


def _lora_scale(pipe: Any) -> Any:
    return (pipe.cross_attention_kwargs or {}).get("scale")


def _adapters(pipe: Any) -> list[Any]:
    """What `set_adapters`, `disable_lora` and their like change."""
    layers = [module for module in pipe.unet.unet.modules() if hasattr(module, "base_layer")]
    switches = ("active_adapters", "disable_adapters", "merged", "scaling")
    return [copy.copy(getattr(layer, name, None)) for layer in layers for name in switches]


def _differs(name: str, before: Any, after: Any) -> bool:
    if before is after:
        return False
    if not torch.is_tensor(after):
        raise UnsupportedError(f"a callback can change {name} on all ranks to a tensor only, not to {after!r:.50}")
    return not torch.is_tensor(before) or before.shape != after.shape or not torch.equal(before, after)
