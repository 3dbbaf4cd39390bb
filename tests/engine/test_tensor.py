"""Tensor parallelism: every step is one device's, weights are views, messages are those that the paper counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from distri_engine import DistriConfig, ParallelUNet, UnsupportedError, open_mesh
from distri_engine.bands import spread
from distri_engine.mesh import Mesh, Pending
from distri_engine.methods.tensor import TENSOR_RULES
from distri_engine.plan import apply_plan, share
from tests.engine.test_engine import almost_equal, job, pictures
from tests.engine.test_plan import exchange, on_meta
from tests.support.gang import run_on_ranks
from tests.support.models import (
    relative,
    sdxl_inputs,
    tiny_embeddings,
    tiny_sd15_unet,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
)

TENSOR = DistriConfig(parallelism="tensor", split_batch=False, warmup_steps=0)
SPLIT = TENSOR.replace(split_batch=True)
EXACT = 5e-6


def sd15_inputs(height: int, width: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sample, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, height, width), (2, 7, 48)))
    return {"sample": sample, "encoder_hidden_states": text, "timestep": 400}


def residuals(batch: int) -> dict[str, Any]:
    """What a ControlNet adds to `tiny_sdxl_unet` at 8 x 12 latent cells, and a text of which some tokens are masked."""
    generator = torch.Generator().manual_seed(3)
    sizes = [(32, 8, 12), (32, 8, 12), (32, 4, 6), (64, 4, 6), (64, 2, 3), (64, 2, 3)]
    down = tuple(torch.randn(batch, *size, generator=generator) for size in sizes)
    mid = torch.randn(batch, 64, 2, 3, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 1]])[:batch]
    return {
        "down_block_additional_residuals": down,
        "mid_block_additional_residual": mid,
        "encoder_attention_mask": mask,
    }


def cases() -> dict[str, tuple[nn.Module, DistriConfig, dict[str, Any]]]:
    """Name -> model, config and inputs. The heads are 2 and 4, the groups 8: little of it divides."""
    sdxl, freely = tiny_sdxl_unet(), tiny_sdxl_unet()
    freely.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    inputs = sdxl_inputs(2, 8, 12) | {"timestep": 900}
    unguided = TENSOR.replace(do_classifier_free_guidance=False, split_batch=True)
    return {
        "guided": (sdxl, TENSOR, inputs),
        "split": (sdxl, SPLIT, inputs),
        "unguided": (sdxl, unguided, sdxl_inputs(1, 4, 4) | {"timestep": 10}),
        "ControlNet": (sdxl, TENSOR, inputs | residuals(2)),
        "ControlNet, split": (sdxl, SPLIT, inputs | residuals(2)),
        "FreeU": (freely, TENSOR, inputs),
        "SD 1.5": (tiny_sd15_unet(), TENSOR, sd15_inputs(8, 16)),
    }


def predict(_: int) -> dict[str, list[Any]]:
    """On a rank: two steps of every case, and the phases that were told."""
    results: dict[str, list[Any]] = {}
    with open_mesh(TENSOR) as mesh:
        for name, (model, config, inputs) in cases().items():
            unet = ParallelUNet(model, config, mesh)  # type: ignore[arg-type]
            results[name] = []
            for step in range(2):
                output = unet(**inputs | {"sample": inputs["sample"] - step}).sample
                results[name] += [output, unet.clock.step.phase.value]
            unet.end()
    return results


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_every_step_is_one_devices(world: int) -> None:
    ranks = run_on_ranks(world, predict, 0)
    for name, (model, _, inputs) in cases().items():
        with torch.no_grad():
            plain = [model(**inputs | {"sample": inputs["sample"] - step}).sample for step in range(2)]
        for results in ranks:
            first, phase, second, next_phase = results[name]
            assert phase == next_phase == "sync"
            assert relative(first, plain[0]) < EXACT, name
            assert relative(second, plain[1]) < EXACT, name
            assert torch.equal(second, ranks[0][name][2]), name  # the same bits everywhere


def sum_up(sizes: list[tuple[int, ...]]) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """On a rank: own tensor, the sum over all ranks and the elements sent; by size, type and transport."""
    results = []
    with open_mesh(TENSOR) as shared_memory:
        for mesh in (shared_memory, Mesh.of_default_group(torch.device("cpu"), shared_memory=False)):
            for size in sizes:
                for dtype in (torch.float32, torch.float16, torch.bfloat16):
                    mine = torch.randn(size, generator=torch.Generator().manual_seed(mesh.rank)).to(dtype)
                    mesh.meter.reset()
                    total = mesh.all_reduce(mine, range(mesh.size))
                    results.append((mine, total, mesh.meter.sent_bytes // mine.itemsize))
    return results


def test_all_reduce() -> None:
    sizes = [(3, 5, 7), (1,), (2,), (4, 1), (2, 3, 4)]
    for case in zip(*run_on_ranks(4, sum_up, sizes), strict=True):
        terms = [mine for mine, _, _ in case]
        # Added up in float32 and in rank order, and rounded once at the end.
        expected = (terms[0].float() + terms[1].float() + terms[2].float() + terms[3].float()).to(terms[0].dtype)
        for _, total, _ in case:
            assert torch.equal(total, expected)
        elements = terms[0].numel()
        assert sum(sent for *_, sent in case) == 2 * 3 * elements  # 2(n-1)/n of them on each of n ranks
        if elements % 4 == 0:
            assert {sent for *_, sent in case} == {2 * 3 * elements // 4}


def test_shares_differ_by_at_most_one_and_may_be_empty() -> None:
    assert spread(10, 4) == (range(3), range(3, 6), range(6, 8), range(8, 10))
    assert [len(part) for part in spread(20, 8)] == [3, 3, 3, 3, 2, 2, 2, 2]
    assert [len(part) for part in spread(2, 3)] == [1, 1, 0]


class Watch(TorchFunctionMode):
    """Collects the weights and biases of all linear layers, convolutions and group norms that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (F.linear, F.conv2d, torch.conv2d):
            self.seen += [part for part in args[1:3] if isinstance(part, torch.Tensor)]
        if function is F.group_norm:
            self.seen += list(args[2:4])
        return function(*args, **(kwargs or {}))


def watch(_: int) -> tuple[int, int, list[str]]:
    """On a rank: elements of the weights that a step used, of those that are no views, and what the layers keep."""
    model = tiny_sdxl_unet()
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with open_mesh(TENSOR) as mesh, Watch() as watched:
        unet = ParallelUNet(model, TENSOR, mesh)
        unet(**sdxl_inputs(2, 8, 8), timestep=500)
        forwards = [part.__dict__["forward"] for part in unet._tree.__self__.modules() if "forward" in part.__dict__]
        assert all(a is b for a, b in zip(model.parameters(), unet._tree.__self__.parameters(), strict=True))
    used = sum(weight.numel() for weight in watched.seen)
    strange = sum(w.numel() for w in watched.seen if w.untyped_storage().data_ptr() not in storages)
    kept = [name for forward in forwards for name, value in vars(forward).items() if isinstance(value, torch.Tensor)]
    return used, strange, kept


def test_weights_are_views_and_shared_out() -> None:
    one = watch(0)
    assert one[1:] == (0, [])
    assert one[0] > 0.95 * sum(parameter.numel() for parameter in tiny_sdxl_unet().parameters())
    for used, strange, kept in run_on_ranks(4, watch, 0):
        assert (strange, kept) == (0, [])
        assert used < 0.5 * one[0]


def changed_model(_: int) -> dict[str, Any]:
    """On a rank: distances from the plain model after changes of it, and what is refused."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, IPAdapterAttnProcessor2_0
    from peft import LoraConfig

    model, results = tiny_sdxl_unet(), {}
    inputs = sdxl_inputs(2, 8, 8) | {"timestep": 500}

    def adapter(seed: int, **options: Any) -> LoraConfig:
        torch.manual_seed(seed)
        targets = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "conv1", "conv2", "time_emb_proj", "conv"]
        return LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **options)

    with torch.no_grad(), open_mesh(TENSOR) as mesh:
        unet = ParallelUNet(model, TENSOR, mesh)

        def distance() -> float:
            unet.begin()
            return relative(unet(**inputs).sample, model(**inputs).sample)

        def refusal(**more: Any) -> str:
            unet.begin()
            with pytest.raises(UnsupportedError) as raised:
                unet(**inputs, **more)
            return str(raised.value)

        before = model(**inputs).sample
        results["before"] = distance()
        model.load_state_dict(tiny_sdxl_unet(seed=8).state_dict())
        results["loaded"] = distance()
        model.set_attn_processor(AttnProcessor())
        results["AttnProcessor"] = distance()
        model.set_attention_slice("max")
        results["sliced"] = distance()
        model.set_attn_processor(AttnProcessor2_0())
        model.add_adapter(adapter(1), adapter_name="a")
        results["LoRA"] = distance()
        model.add_adapter(adapter(2), adapter_name="b")
        model.set_adapters(["a", "b"], [0.5, -0.3])
        results["two LoRAs, weighted"] = distance()
        results["scaled LoRA"] = relative(
            unet(**inputs, cross_attention_kwargs={"scale": 0.3}).sample,
            model(**inputs, cross_attention_kwargs={"scale": 0.3}).sample,
        )
        model.disable_adapters()
        results["disabled"] = distance()
        model.enable_adapters()
        model.fuse_lora()
        results["fused"] = distance()
        model.unfuse_lora()
        results["moved"] = relative(model(**inputs).sample, before)
        model.delete_adapters(["a", "b"])
        model.add_adapter(adapter(3, use_dora=True), adapter_name="d")
        results["DoRA"] = refusal()
        model.delete_adapters("d")
        name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor"
        processors = model.attn_processors
        model.set_attn_processor(processors | {name: IPAdapterAttnProcessor2_0(64, 48)})
        results["IP-Adapter"] = refusal()
        model.set_attn_processor(AttnProcessor2_0())
        hook = model.mid_block.resnets[0].conv1.register_forward_hook(lambda *_: None)
        results["hook"] = refusal()
        hook.remove()
        results["mask a head"] = refusal(attention_mask=torch.ones(16, 4))
        results["after"] = distance()
    return results


def test_changes_of_the_model_are_seen_or_refused() -> None:
    for results in run_on_ranks(3, changed_model, 0):
        refused = {name: results.pop(name) for name in ("DoRA", "IP-Adapter", "hook", "mask a head")}
        assert results.pop("moved") > 0.1  # the adapters did something
        assert all(distance < EXACT for distance in results.values()), results.items()
        assert "adapter d of down_blocks.0.resnets.0.conv1 is more than a plain LoRA" in refused["DoRA"]
        assert "call fuse_lora() first" in refused["DoRA"]
        assert "attn2 has the attention processor IPAdapterAttnProcessor2_0" in refused["IP-Adapter"]
        assert "mid_block.resnets.0.conv1 has a forward hook" in refused["hook"]
        assert "attention mask a head" in refused["mask a head"]


def half(_: int) -> list[torch.Tensor]:
    """On a rank: one step in float16 and one in bfloat16."""
    inputs: Any = sdxl_inputs(2, 8, 8)
    outputs = []
    with open_mesh(TENSOR) as mesh:
        for dtype in (torch.float16, torch.bfloat16):
            unet = ParallelUNet(tiny_sdxl_unet().to(dtype), TENSOR, mesh)
            added = {name: part.to(dtype) for name, part in inputs["added_cond_kwargs"].items()}
            sample, text = inputs["sample"].to(dtype), inputs["encoder_hidden_states"].to(dtype)
            outputs.append(unet(sample, 500, text, added_cond_kwargs=added).sample)
    return outputs


def test_half_precision() -> None:
    with torch.no_grad():
        plain = tiny_sdxl_unet()(**sdxl_inputs(2, 8, 8), timestep=500).sample
    for sixteen, brain in run_on_ranks(3, half, 0):
        assert (sixteen.dtype, brain.dtype) == (torch.float16, torch.bfloat16)
        assert relative(sixteen, plain) < 5e-3
        assert relative(brain, plain) < 5e-2


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        # Two attentions and a feed-forward a transformer layer (70 of SDXL, 16 of SD 1.5), ResNet blocks, samplers.
        ("sdxl_base_unet", (140, 70, 17, 4)),
        ("sd15_unet", (32, 16, 22, 6)),
    ],
)
def test_plan_of_published_unets(name: str, counts: tuple[int, ...]) -> None:
    unet = on_meta(name)
    report = apply_plan(share(unet), TENSOR_RULES, exchange())
    assert list(report.counts) == ["attention", "feed-forward", "ResNet block", "sampling convolution"]
    assert tuple(report.counts.values()) == counts
    taken = tuple(path for paths in report.paths.values() for path in paths)
    outside = {
        path.split(".")[-1]
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not path.startswith(taken)
    }
    assert outside == {"conv_in", "conv_out", "linear_1", "linear_2", "proj_in", "proj_out"}


class OneOfEight(Mesh):
    """A rank without weights among eight: what it would send is counted, and nothing arrives."""

    def __init__(self) -> None:
        super().__init__(0, 1, torch.device("meta"))
        self.size = 8

    def swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> Pending:
        self.meter.sent_bytes += sum(tensor.nbytes for tensor in sends.values())
        return Pending([], self.meter)


@pytest.mark.parametrize(("side", "billions"), [(1024, 1.33), (2048, 5.33), (3840, 18.7)])
def test_messages_are_those_of_the_paper(side: int, billions: float) -> None:
    """Elements that each of eight ranks sends in a step, both branches in the batch (section 5, "Comm.")."""
    mesh = OneOfEight()
    unet = ParallelUNet(on_meta("sdxl_base_unet"), TENSOR, mesh)  # type: ignore[arg-type]
    with torch.device("meta"):
        conditions = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
        latents, text = torch.empty(2, 4, side // 8, side // 8), torch.empty(2, 77, 2048)
        out = unet(latents, torch.tensor(500), text, added_cond_kwargs=conditions).sample
    assert out.shape == latents.shape
    assert float(f"{mesh.meter.sent_bytes / 4e9:.3g}") == billions


def by_pipeline(_: int) -> torch.Tensor:
    """On a rank: latents of the tiny pipeline through DistriSDXLPipeline."""
    from distri_engine import DistriSDXLPipeline

    pipeline = DistriSDXLPipeline(tiny_sdxl_pipeline(), SPLIT.replace(height=64, width=96))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.prepare()
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    images = pipeline(**tiny_embeddings(), num_inference_steps=3, latents=latents, output_type="latent").images
    pipeline.close()
    return images


def test_pipeline_is_diffusers_own() -> None:
    plain = tiny_sdxl_pipeline()
    plain.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"num_inference_steps": 3, "latents": latents, "output_type": "latent"}
    expected = plain(**tiny_embeddings(), **call, height=64, width=96).images
    for images in run_on_ranks(4, by_pipeline, 0):
        assert relative(images, expected) < EXACT


def test_picture_is_one_devices() -> None:
    jobs = [job(config={"parallelism": "tensor"}, steps=4, height=64, width=256)]  # 64 rows: two bands would be all
    ((one, *_),) = run_on_ranks(1, pictures, jobs)[0]
    ranks = run_on_ranks(3, pictures, jobs)
    many = ranks[0][0][0]
    assert one is not None
    assert many is not None
    assert almost_equal(one, many)
    for ((_, (prepared, *steps), _),) in ranks:
        assert (prepared.box, prepared.branch) == ((0, 0, 256, 64), "both")
        assert [step.phase for step in steps] == ["sync"] * 4
        assert all(step.sent_bytes > 0 for step in steps)
