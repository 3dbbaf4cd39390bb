"""What is changed on a model or pipeline between two pictures, or two steps, has the effect it has in diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.test_lora import add_adapter
from tests.support.gang import run_on_ranks
from tests.support.models import DEMO_MODEL, relative, sdxl_inputs, tiny_sdxl_unet
from tests.support.pipelines import tiny_pipeline
from tests.support.recorder import DispatchRecorder

SIZE = {"height": 128, "width": 64}
CALL: dict[str, Any] = {"prompt": "a red house", "num_inference_steps": 3, "output_type": "latent"}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parallel(plain: Any = None, **options: Any) -> Any:
    from distri_engine import DistriConfig, DistriSDXLPipeline

    config = DistriConfig(**{**SIZE, "mode": "full_sync", "split_batch": False, **options})
    return DistriSDXLPipeline(plain or tiny_pipeline("sdxl", own=True), config)


def apart(ours: Any, plain: Any, **options: Any) -> float:
    """How far the pictures of both are from each other."""
    one, other = (pipe(**SIZE, **{**CALL, **options}, generator=seeded()).images for pipe in (ours, plain))
    return relative(one, other)


# --- between two pictures


def norms_on_ranks() -> tuple[float, float]:
    from diffusers.training_utils import EMAModel

    plain, ours = tiny_pipeline("sdxl", own=True), parallel()
    before = apart(ours, plain)
    average = EMAModel(plain.unet.parameters())
    average.shadow_params = [
        weight + 0.3 * torch.randn(weight.shape, generator=seeded(5)) if weight.ndim == 1 else weight
        for weight in average.shadow_params
    ]
    for unet in (plain.unet, ours.unet):
        average.copy_to(unet.parameters())  # writes through .data, which leaves no trace
    return before, apart(ours, plain)


def test_weights_that_are_written_through_data_are_seen() -> None:
    for before, after in run_on_ranks(2, norms_on_ranks):
        assert before < 5e-6
        assert after < 5e-6


def rewrapped_on_ranks() -> list[float]:
    import gc

    plain, expected = tiny_pipeline("sdxl", own=True), tiny_pipeline("sdxl", own=True)
    first = parallel(plain)
    made = [apart(first, expected)]
    second = parallel(plain)
    made += [apart(second, expected), apart(first, expected)]  # the first one has its own again
    second.close()
    made.append(apart(first, expected))
    del first, second
    gc.collect()
    for _ in range(2):
        made.append(apart(parallel(plain), expected))
    return made


def test_a_pipeline_is_wrapped_again_and_again() -> None:
    for made in run_on_ranks(2, rewrapped_on_ranks):
        assert max(made) < 5e-6, made


def decoders_on_ranks() -> dict[str, float]:
    from peft import LoraConfig

    made = {}
    for what in ("adapter", "padding", "own decode", "hook"):
        plain, ours = tiny_pipeline("sdxl", own=True), parallel()
        before = apart(ours, plain, output_type="pt")
        for pipe in (plain, ours):
            torch.manual_seed(3)
            if what == "adapter":
                pipe.vae.add_adapter(
                    LoraConfig(r=2, target_modules=["conv1", "to_k"], init_lora_weights=False)  # type: ignore[arg-type]
                )
            elif what == "padding":
                for module in pipe.vae.modules():
                    if isinstance(module, torch.nn.Conv2d):
                        module.padding_mode = "circular"
            elif what == "hook":
                block = pipe.vae.decoder.mid_block
                block.forward = lambda *args, forward=block.forward, **named: forward(*args, **named) * 0.5
            else:
                decode = pipe.vae.decode
                pipe.vae.decode = lambda z, *_, decode=decode, **__: (decode(z * 0.5, return_dict=False)[0],)
        made[what] = max(before, apart(ours, plain, output_type="pt"))
    return made


def test_a_changed_decoder_decodes_as_in_diffusers() -> None:
    for made in run_on_ranks(2, decoders_on_ranks):
        assert max(made.values()) < 5e-5, made


def seamless_on_ranks() -> tuple[str, str]:
    from distri_engine import ModelError

    said = []
    for first in (True, False):
        ours = parallel()
        if not first:
            ours(**CALL, generator=seeded())
        ours.unet.unet.conv_out.padding_mode = "circular"
        with pytest.raises(ModelError) as error:
            ours(**CALL, generator=seeded())
        said.append(str(error.value))
    return said[0], said[1]


def test_padding_without_a_form_on_bands_is_refused_whenever_it_is_set() -> None:
    for first, later in run_on_ranks(2, seamless_on_ranks):
        assert first == later
        assert "conv_out cannot run on a band of rows" in first


def upcast_on_ranks() -> tuple[torch.dtype, tuple[int, ...]]:
    ours = parallel(tiny_pipeline("sdxl", dtype=torch.float16, own=True), parallelism="paradigms")
    options = CALL | {"output_type": "pt"}
    ours(**options, generator=seeded())
    kept = ours.vae.dtype
    ours.distri_config = ours.distri_config.replace(parallelism="patch")
    return kept, tuple(ours(**options, generator=seeded()).images.shape)


def test_the_decoder_keeps_its_type() -> None:
    for kept, shape in run_on_ranks(2, upcast_on_ranks):
        assert kept is torch.float16
        assert shape == (1, 3, 128, 64)


def encoded_on_ranks() -> list[float]:
    plain, ours = tiny_pipeline("sdxl", own=True), parallel()
    if ours.mesh.rank:  # as from_pretrained leaves them
        ours.text_encoder = ours.text_encoder_2 = ours.tokenizer = ours.tokenizer_2 = None
    far = []
    for guided in (True, False):
        words = {"prompt": "a red house", "do_classifier_free_guidance": guided}
        for one, other in zip(ours.encode_prompt(**words), plain.encode_prompt(**words), strict=True):
            assert (one is None) == (other is None)
            far.append(0.0 if one is None else relative(one, other))
    return far


def test_text_is_encoded_outside_a_picture() -> None:
    for far in run_on_ranks(2, encoded_on_ranks):
        assert max(far) < 5e-6


def alone_on_ranks() -> float:
    return apart(parallel(parallelism="single", ranks=2), tiny_pipeline("sdxl", own=True))


def test_one_device_of_all_the_ranks_there_are() -> None:
    assert max(run_on_ranks(2, alone_on_ranks)) < 5e-6


# --- between two steps


def called_back_on_ranks() -> tuple[float, str]:
    from distri_engine import UnsupportedError

    plain, ours = tiny_pipeline("sdxl", own=True), parallel()

    def reword(pipeline: Any) -> Any:
        """A callback that does not use the pipeline it is given, but the one it knows."""

        def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 0:
                embeds, negative, *_ = pipeline.encode_prompt("a blue boat", do_classifier_free_guidance=True)
                tensors["prompt_embeds"] = torch.cat([negative, embeds])
            return tensors

        return callback

    asked = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    images = [
        pipe(**SIZE, **CALL, **asked, callback_on_step_end=reword(pipe), generator=seeded()).images
        for pipe in (ours, plain)
    ]
    add_adapter(ours.unet, "one", ["to_k"])

    def switch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.unet.set_adapters("one", 0.3)
        return tensors

    with pytest.raises(Exception, match="cannot switch adapters on all ranks") as error:
        ours(**CALL, callback_on_step_end=switch, generator=seeded())
    assert isinstance(error.value, UnsupportedError) or ours.mesh.rank
    return relative(*images), type(error.value).__name__


def test_callbacks_that_reach_past_what_they_are_given() -> None:
    for far, error in run_on_ranks(2, called_back_on_ranks):
        assert far < 5e-6
        assert error in ("UnsupportedError", "MeshError")


def switched_on_ranks(order: list[bool]) -> list[tuple[str, float]]:
    from distri_engine import DistriConfig, ParallelUNet, open_mesh
    from distri_engine.boards import BoardBucket

    config = DistriConfig(mode="stale_gn", warmup_steps=1, split_batch=False, comm_checkpoint=1000)
    made = []
    with open_mesh(config) as mesh, torch.no_grad():
        plain, model = tiny_sdxl_unet(), tiny_sdxl_unet()
        for unet in (plain, model):
            add_adapter(unet, "two", ["to_k", "conv1"])
        unet = ParallelUNet(model, config, mesh)
        unet.begin()
        for step, active in enumerate(order):
            for each in (plain, unet):
                (each.enable_adapters if active else each.disable_adapters)()
            first = sdxl_inputs(2, 32, 8)
            given = first | {"sample": first["sample"] * (1 - 0.1 * step), "timestep": 900 - 100 * step}  # type: ignore[operator]
            far = relative(unet(**given).sample, plain(**given).sample)
            assert not any(bucket._posted for bucket in unet._exchange._buckets if isinstance(bucket, BoardBucket))
            made.append((unet.clock.step.phase.value, far))
        unet.end()
    return made


@pytest.mark.parametrize("on", [True, False])
def test_an_adapter_is_switched_among_stale_steps(on: bool) -> None:
    for made in run_on_ranks(2, switched_on_ranks, [not on] * 4 + [on] * 3):
        phases = [phase for phase, _ in made]
        assert phases == ["sync", "sync", "stale", "stale", "sync", "stale", "stale"]
        for phase, far in made:
            assert far < (5e-6 if phase == "sync" else 0.2), made


# --- in inference mode


def inferred_on_ranks() -> tuple[float, float]:
    from distri_engine import DistriConfig, DistriSDXLPipeline

    def silence(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            tensors["prompt_embeds"][:, 3:].zero_()
        return tensors

    with torch.inference_mode():
        callback = {"callback_on_step_end": silence, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        far = apart(parallel(), tiny_pipeline("sdxl", own=True), **callback)
        config = DistriConfig(**SIZE, split_batch=False)  # type: ignore[arg-type]
        loaded = DistriSDXLPipeline.from_pretrained(str(DEMO_MODEL), distri_config=config)
        loaded.set_progress_bar_config(disable=True)
        return far, float(loaded(**CALL, generator=seeded()).images.std())


@pytest.mark.parametrize("world", [1, 2])
def test_inference_mode(world: int) -> None:
    """A model may be loaded in it, and what is written in place is seen."""
    for far, spread in run_on_ranks(world, inferred_on_ranks):
        assert far < 5e-6
        assert spread > 0.1


@pytest.mark.parametrize("inference", [False, True])
def test_replayed_steps_see_what_is_written_in_place(inference: bool) -> None:
    from distri_engine import DistriConfig, ParallelUNet
    from distri_engine.mesh import Mesh

    class PlainUNet(ParallelUNet):
        _quick = False

    config, mesh = DistriConfig(parallelism="single"), Mesh(0, 1, torch.device("cpu"))
    plain, ours = tiny_sdxl_unet(), PlainUNet(tiny_sdxl_unet(), config, mesh, recorder=DispatchRecorder())
    with torch.inference_mode(inference), torch.no_grad():
        given: dict[str, Any] = sdxl_inputs(2, 16, 16)
        latents = given.pop("sample").clone()
        ours.begin()
        for step in range(4):
            given["timestep"] = torch.tensor(900 - 100 * step)
            assert relative(ours(latents, **given).sample, plain(latents, **given).sample) < 5e-6
            latents.mul_(0.7)
        assert len(ours._graphs) == 1
