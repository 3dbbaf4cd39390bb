"""The diffusers-like API, with the usage of the original DistriFusion: one thin class for each kind of diffusers
pipeline, run on all ranks of a torchrun group. What rank 0 does for the others in a call is relay.py's business;
serving requests one after another, with events and cancelling, is engine.py's.
"""

from __future__ import annotations

import inspect
import secrets
import weakref
from contextlib import ExitStack
from typing import Any, ClassVar, NoReturn, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from distri_engine.arguments import check_arguments, name_arguments
from distri_engine.config import DistriConfig, TextEncoderOn, check_choice
from distri_engine.controlnet import parallel_controlnet
from distri_engine.errors import UnsupportedError
from distri_engine.loading import check_family, load_pipeline, share_components
from distri_engine.lora import skip_absent_text_encoders
from distri_engine.mesh import Mesh, open_mesh
from distri_engine.methods import METHODS
from distri_engine.relay import SafetyRelay, TextRelay, relay_callbacks, replaced, tell
from distri_engine.sampling import call_over_time, check_over_time
from distri_engine.unet import ParallelUNet
from distri_engine.vae import ParallelDecoder

Self = TypeVar("Self", bound="DistriPipeline")

REFUSED_METHODS = (
    *("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"),
    *("enable_freeu", "fuse_qkv_projections", "load_ip_adapter", "set_ip_adapter_scale"),
    *("enable_pag", "set_pag_applied_layers"),
)
_VAE_SWITCHES = {  # diffusers is about to take them from its pipelines
    f"{switch}_vae_{what}": f"{switch}_{what}" for switch in ("enable", "disable") for what in ("tiling", "slicing")
}


class _Membership:
    """The place in the group that several pipelines hold together: left when the last of them is closed."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.holders = stack, 0

    def leave(self) -> None:
        self.holders -= 1
        if self.holders == 0:
            self.stack.close()


class DistriPipeline:
    """A diffusers pipeline on all ranks. `pipeline` is the one inside: what is not found here is read from it, and what
    it has (scheduler, vae, watermark, ...) may be replaced here. The classes below say which kind they wrap.
    """

    diffusers_class: ClassVar[Any]
    default_model: ClassVar[str | None] = None

    def __init__(
        self, pipeline: Any, distri_config: DistriConfig, mesh: Mesh | None = None, *, text_encoder_on: str = "rank0"
    ) -> None:
        """Wrap a loaded `pipeline`, the same on every rank; with text_encoder_on="rank0" only rank 0's encodes text.

        Raises ValueError for a pipeline of another kind, MeshError if the group cannot be joined.
        """
        if not isinstance(pipeline, self.diffusers_class):
            fitting = [kind for kind in DistriPipeline.__subclasses__() if isinstance(pipeline, kind.diffusers_class)]
            raise ValueError(
                f"{type(self).__name__} wraps a {self.diffusers_class.__name__}, not a {type(pipeline).__name__}; use "
                + (fitting[0].__name__ if fitting else "the diffusers pipeline, which has no parallel form here")
            )
        check_family(pipeline)
        with ExitStack() as stack:
            self.mesh = stack.enter_context(open_mesh(distri_config)) if mesh is None else mesh
            self.distri_config = distri_config
            self.text_encoder_on = check_choice("text_encoder_on", text_encoder_on, TextEncoderOn)
            self._decoder: ParallelDecoder | None = None
            self.pipeline: Any = pipeline
            self.make_parallel()
            self._hold(_Membership(stack.pop_all()))

    def make_parallel(self) -> None:
        """Replace what all ranks run together in `pipeline`."""
        skip_absent_text_encoders(self.pipeline)
        self.unet = self.pipeline.unet  # __setattr__ wraps it, and a ControlNet beside it

    def _hold(self, membership: _Membership) -> None:
        membership.holders += 1
        self._membership = membership
        # Leaves the group; at the latest when the pipeline or the program ends.
        self.close = weakref.finalize(self, membership.leave)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        *model_or_config: Any,
        distri_config: DistriConfig | None = None,
        pretrained_model_name_or_path: str | None = None,
        text_encoder_on: str = "rank0",
        **kwargs: Any,
    ) -> Self:
        """Join the torchrun group and open a model on this rank's device. Text encoders and a safety checker are loaded
        on rank 0 only, unless text_encoder_on="all".

        The config and the model may also come first, in either order: the original's is one way, diffusers' the other.
        kwargs go to diffusers' `from_pretrained`; `torch_dtype` and `dtype` mean the same.
        Raises ModelError, MeshError, or ValueError.
        """
        for value in model_or_config:
            if isinstance(value, DistriConfig):
                distri_config = value
            else:
                pretrained_model_name_or_path = str(value)
        model = pretrained_model_name_or_path or cls.default_model
        if distri_config is None or model is None:
            missing = "distri_config=DistriConfig(...)" if distri_config is None else "pretrained_model_name_or_path"
            raise TypeError(f"from_pretrained needs {missing}")
        everywhere = check_choice("text_encoder_on", text_encoder_on, TextEncoderOn) is TextEncoderOn.ALL
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        with ExitStack() as stack:
            mesh = stack.enter_context(open_mesh(distri_config))
            text = everywhere or mesh.rank == 0
            pipe = load_pipeline(model, mesh.device, dtype, text=text, kind=cls.diffusers_class, **kwargs)
            self = cls(pipe, distri_config, mesh, text_encoder_on=text_encoder_on)
            self._hold(_Membership(stack.pop_all()))
        return self

    @classmethod
    def from_pipe(cls: type[Self], other: DistriPipeline, **kwargs: Any) -> Self:
        """Another kind of pipeline over the components, mesh and buffers of `other`; nothing is loaded or copied.

        kwargs: components and options of the diffusers class that `other` does not have (controlnet, ...), or replaces.
        The group is left when both are closed. Raises ValueError if components are missing.
        """
        pipe = share_components(cls.diffusers_class, other.pipeline, kwargs)
        self = cls(pipe, other.distri_config, other.mesh, text_encoder_on=other.text_encoder_on)
        self._decoder = other._parallel_decoder()
        self._hold(other._membership)
        return self

    @torch.no_grad()
    def prepare(self) -> None:
        """Run a synchronous step and two stale ones at the configured size on an empty text, so that the first picture
        finds every buffer allocated and, on a GPU, steps that can be replayed captured.
        """
        config, unet, scale = self.distri_config, self.pipeline.unet, self.pipeline.vae_scale_factor
        guided = config.do_classifier_free_guidance and unet.config.time_cond_proj_dim is None

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(1 + guided, *shape, dtype=unet.dtype, device=self.mesh.device)

        sample = zeros(unet.config.in_channels, config.height // scale, config.width // scale)
        added = None
        if unet.config.addition_embed_type == "text_time":
            numbers = 5 if getattr(self.pipeline.config, "requires_aesthetics_score", False) else 6
            pooled = unet.config.projection_class_embeddings_input_dim - numbers * unet.config.addition_time_embed_dim
            added = {"text_embeds": zeros(pooled), "time_ids": zeros(numbers)}
        if METHODS[config.parallelism].over_time:
            return  # it has no buffers
        unet.begin(config.replace(warmup_steps=0), guided=guided)
        for _ in range(3):
            unet(sample, 1, zeros(77, unet.config.cross_attention_dim), added_cond_kwargs=added)
        unet.end()

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped pipeline's `__call__` accepts and returns, on every rank.

        height and width default to the size of `latents`, of `image`, or the config's. Without `generator` the ranks
        agree on a random seed. Callbacks run on rank 0 only. Raises ValueError or TypeError for wrong input,
        UnsupportedError for what has no parallel form, and MeshError on the others for what failed on rank 0.
        """
        if getattr(self.pipeline.unet, "mesh", None) is not self.mesh:  # another wrapper has taken it over since
            self.unet = self.pipeline.unet
        call = name_arguments(self.pipeline, self.distri_config, args, kwargs)
        guided = check_arguments(self.pipeline, self.distri_config, self.mesh, call)
        over_time = METHODS[self.distri_config.parallelism].over_time
        if over_time:
            check_over_time(self.pipeline, self.distri_config, call)
        if call.get("generator") is None:
            seed = tell(self.mesh, lambda: [torch.tensor(float(secrets.randbelow(2**32)))], torch.float64)[0]
            call["generator"] = torch.Generator().manual_seed(int(seed.item()))
        pipe, unet = self.pipeline, self.pipeline.unet
        relay_callbacks(pipe, self.mesh, call)
        unet.begin(self.distri_config, guided=guided)
        with ExitStack() as during:
            if self.text_encoder_on is TextEncoderOn.RANK0:
                text = TextRelay(pipe.encode_prompt, self.mesh, unet.dtype, guided=guided)
                during.enter_context(replaced(pipe, encode_prompt=text))
            if hasattr(pipe, "run_safety_checker"):
                safety = SafetyRelay(pipe.run_safety_checker, self.mesh)
                during.enter_context(replaced(pipe, run_safety_checker=safety))
            if self._parallel_decoder() is not None and "decode" not in vars(pipe.vae):  # else somebody has his own
                during.enter_context(replaced(pipe.vae, decode=self._decode))
            if over_time:
                result = call_over_time(pipe, self.distri_config, self.mesh, guided=guided, **call)
            else:
                result = pipe(**call)
        unet.end()
        return result

    def _decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> tuple[torch.Tensor]:
        assert self._decoder is not None, "a call has made it"
        picture = self._decoder.decode(z, on_every_rank=True)
        assert picture is not None, "every rank gets the picture"
        assert not return_dict, "the pipelines ask for a tuple"
        return (picture,)

    def _parallel_decoder(self) -> ParallelDecoder | None:
        """The decoder for today's VAE; None where there is none, and for those of another kind, which decode the whole
        picture on every rank.
        """
        vae = self.pipeline.vae
        if not isinstance(vae, AutoencoderKL):
            self._decoder = None
        elif self._decoder is None or self._decoder.vae is not vae:
            self._decoder = ParallelDecoder(vae, self.mesh)
        return self._decoder

    # --- a diffusers pipeline for everybody else

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, on every rank: rank 0 encodes for all, unless text_encoder_on="all"."""
        encode = self.pipeline.encode_prompt
        if self.text_encoder_on is TextEncoderOn.ALL or "encode_prompt" in vars(self.pipeline):
            return encode(*args, **kwargs)  # during a call: together, or in a callback alone
        given = inspect.signature(encode).bind(*args, **kwargs)
        given.apply_defaults()
        guided = bool(given.arguments["do_classifier_free_guidance"])
        return TextRelay(encode, self.mesh, self.pipeline.unet.dtype, guided=guided)(*args, **kwargs)

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """As diffusers' `to`: moves and casts the components, and returns this pipeline."""
        self.pipeline.to(*args, **kwargs)
        return self

    def load_textual_inversion(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, where there are text encoders; the other ranks are told what rank 0 made of the text."""
        if self._reads_text:
            self.pipeline.load_textual_inversion(*args, **kwargs)

    def unload_textual_inversion(self, *args: Any, **kwargs: Any) -> None:
        """The way back."""
        if self._reads_text:
            self.pipeline.unload_textual_inversion(*args, **kwargs)

    @property
    def _reads_text(self) -> bool:
        return any(getattr(self.pipeline, name, None) is not None for name in ("tokenizer", "tokenizer_2"))

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":  # not yet set: __init__ has failed
            raise AttributeError(name)
        if name in _VAE_SWITCHES:
            if self.pipeline.vae is None:
                raise AttributeError(f"{name} needs a vae, and this pipeline has none; load one, then set vae")
            return getattr(self.pipeline.vae, _VAE_SWITCHES[name])
        if name in REFUSED_METHODS:

            def refuse(*_: Any, **__: Any) -> NoReturn:
                raise UnsupportedError(f"{name} has no form under patch parallelism; use the diffusers pipeline for it")

            return refuse
        return getattr(self.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        pipeline = self.__dict__.get("pipeline")
        if pipeline is None or name in self.__dict__ or not hasattr(pipeline, name):
            super().__setattr__(name, value)
        elif name == "unet":
            if isinstance(value, ParallelUNet) and value.mesh is not self.mesh:
                value = value.unet  # of another pipeline around this one, whose mesh may be closed by now
            known = isinstance(value, ParallelUNet)
            pipeline.unet = value if known else ParallelUNet(value, self.distri_config, self.mesh)
            if getattr(pipeline, "controlnet", None) is not None:
                self.controlnet = pipeline.controlnet
        elif name == "controlnet":
            pipeline.controlnet = parallel_controlnet(value, pipeline.unet)
        else:
            setattr(pipeline, name, value)


class DistriSDXLPipeline(DistriPipeline):
    """SDXL: text to picture."""

    diffusers_class = StableDiffusionXLPipeline
    default_model = "stabilityai/stable-diffusion-xl-base-1.0"


class DistriSDXLImg2ImgPipeline(DistriPipeline):
    """SDXL: picture and text to picture; also the refiner."""

    diffusers_class = StableDiffusionXLImg2ImgPipeline


class DistriSDXLInpaintPipeline(DistriPipeline):
    """SDXL: what lies under a mask is painted anew."""

    diffusers_class = StableDiffusionXLInpaintPipeline


class DistriSDXLControlNetPipeline(DistriPipeline):
    """SDXL: text to picture, along a control image."""

    diffusers_class = StableDiffusionXLControlNetPipeline


class DistriSDPipeline(DistriPipeline):
    """Stable Diffusion 1.x and 2.x: text to picture."""

    diffusers_class = StableDiffusionPipeline


class DistriSDImg2ImgPipeline(DistriPipeline):
    """Stable Diffusion 1.x and 2.x: picture and text to picture."""

    diffusers_class = StableDiffusionImg2ImgPipeline


class DistriSDInpaintPipeline(DistriPipeline):
    """Stable Diffusion 1.x and 2.x: what lies under a mask is painted anew."""

    diffusers_class = StableDiffusionInpaintPipeline


class DistriSDControlNetPipeline(DistriPipeline):
    """Stable Diffusion 1.x and 2.x: text to picture, along a control image."""

    diffusers_class = StableDiffusionControlNetPipeline
