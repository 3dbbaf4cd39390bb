"""Steps that are replayed: the same bits as steps that run layer by layer, whatever has changed in between. On the CPU
a recorder stands in for CUDA graphs; test_graphs_on_gpu.py has the same with real ones.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

from distri_engine import DistriConfig, DistriSDXLPipeline, ParallelUNet
from distri_engine.graphs import CAPACITY
from distri_engine.mesh import Mesh
from tests.support.gang import run_on_ranks
from tests.support.models import sdxl_inputs, tiny_embeddings, tiny_sd15_unet, tiny_sdxl_pipeline, tiny_sdxl_unet
from tests.support.recorder import DispatchRecorder, EchoMesh, place_of

STALE = ("stale_gn", "corrected_async_gn", "separate_gn", "no_sync")


class PlainUNet(ParallelUNet):
    """Runs diffusers' own blocks, as on a GPU."""

    _quick = False


def alone() -> Mesh:
    return Mesh(0, 1, torch.device("cpu"))


def pair(mesh: Callable[[], Mesh], **recorder: Any) -> tuple[PlainUNet, PlainUNet, DispatchRecorder]:
    """Over the same weights: a UNet that replays what it can, one that does not, and the former's recorder."""
    model, tape = tiny_sdxl_unet(), DispatchRecorder(**recorder)
    config = DistriConfig()
    return PlainUNet(model, config, mesh(), recorder=tape), PlainUNet(model, config, mesh()), tape


def picture(
    unet: ParallelUNet, steps: int = 5, *, size: tuple[int, int] = (16, 16), seed: int = 1, **config: Any
) -> list[Any]:
    """Outputs of every step with what it sent and how far activations moved. Each seed has its own text."""
    seen: list[Any] = []
    unet.begin(DistriConfig(**{"warmup_steps": 1, "comm_checkpoint": 7, **config}))
    for step in range(steps):
        unet.mesh.meter.reset()
        seen.append(unet(**inputs_at(step, size, seed)).sample)
        seen += [unet.mesh.meter.sent_bytes, unet.moved()]
    unet.end()
    return seen


def inputs_at(step: int, size: tuple[int, int] = (16, 16), seed: int = 1) -> dict[str, Any]:
    first, other = sdxl_inputs(2, *size, seed=seed), sdxl_inputs(2, *size, seed=seed + 50)["sample"]
    moved = first["sample"] * (1 - 0.06 * step) + 0.08 * step * other  # type: ignore[operator]
    # The text is the same tensor at every step, as in pipelines.
    return first | _TEXTS.setdefault((*size, seed), {name: first[name] for name in first if name != "sample"}) | {
        "sample": moved,
        "timestep": torch.tensor(900 - 60 * step),
    }  # fmt: skip


_TEXTS: dict[tuple[int, ...], dict[str, Any]] = {}


@pytest.fixture(autouse=True)
def _other_texts() -> None:
    _TEXTS.clear()


def equal(some: list[Any], others: list[Any]) -> bool:
    """Bit for bit, and numbers."""
    for one, other in zip(some, others, strict=True):
        if isinstance(one, torch.Tensor):
            assert one.isfinite().all()
        if not (torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other):
            return False
    return True


@pytest.mark.parametrize("parallelism", ["single", "patch", "naive_patch", "tensor"])
def test_on_one_rank_all_steps_but_the_first_are_replayed(parallelism: str) -> None:
    ours, eager, tape = pair(alone)
    for seed in (1, 2, 1):
        assert equal(
            picture(ours, seed=seed, parallelism=parallelism), picture(eager, seed=seed, parallelism=parallelism)
        )
    assert (tape.recordings, len(ours._graphs)) == (1, 1)
    assert tape.replays == 4 + 5 + 5


@pytest.mark.parametrize("mode", STALE)
@pytest.mark.parametrize("comm_checkpoint", [1, 7, 1000])
def test_stale_steps_are_replayed_between_their_messages(mode: str, comm_checkpoint: int) -> None:
    ours, eager, tape = pair(EchoMesh)
    options = {"mode": mode, "split_batch": False, "comm_checkpoint": comm_checkpoint, "bessel_correction": True}
    for seed in (1, 2):
        assert equal(picture(ours, 6, seed=seed, **options), picture(eager, 6, seed=seed, **options))
    assert tape.recordings == 1
    pieces = tape.replays / (3 + 4)  # two synchronous steps, and in the first picture one that fills caches
    buckets = len(ours._exchange._buckets)
    # One more piece than cuts: before the first message is joined, where one starts and the next is joined, at the end.
    assert pieces == (1 if mode == "no_sync" else buckets + 2)
    assert (comm_checkpoint < 1000) == (buckets > 1) or mode == "no_sync"


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "full_sync"},
        {"mode": "sync_gn"},
        {"mode": "extrapolated"},
        {"warmup_steps": 10},
        {"warmup_steps": "auto", "warmup_threshold": 0.0},
        {"parallelism": "tensor"},
        {"use_cuda_graph": False},
        {"use_cuda_graph": False, "parallelism": "single"},
    ],
)
def test_other_steps_are_not(options: dict[str, Any]) -> None:
    ours, eager, tape = pair(EchoMesh)
    assert equal(picture(ours, split_batch=False, **options), picture(eager, split_batch=False, **options))
    assert tape.recordings == 0


def test_neither_are_those_whose_peers_read_over_shared_memory() -> None:
    ours, eager, tape = pair(EchoMesh)
    for unet in (ours, eager):
        picture(unet, 2, split_batch=False)
    ours.mesh.boards = True  # type: ignore[attr-defined]
    assert ours._kind() is None
    assert tape.recordings == 0


def test_guidance_branches_and_patches_that_never_talk() -> None:
    ours, eager, tape = pair(EchoMesh)
    naive: dict[str, Any] = {"parallelism": "naive_patch", "split_batch": False, "split_scheme": "alternate"}
    for options in ({"mode": "full_sync"}, {"warmup_steps": "auto"}, naive, {"parallelism": "tensor"}):
        assert equal(picture(ours, **options), picture(eager, **options))
    assert tape.recordings == 4  # guidance; rows, columns; guidance of tensor parallelism
    assert tape.replays == 4 + 5 + (2 + 1) + 4


def test_everything_may_change_from_picture_to_picture() -> None:
    ours, eager, tape = pair(EchoMesh)
    rounds = [
        {"mode": "corrected_async_gn"}, {"mode": "stale_gn"}, {"mode": "corrected_async_gn", "seed": 2},
        {"size": (24, 8)}, {"size": (24, 8), "mode": "extrapolated"}, {"size": (24, 8), "seed": 2}, {"size": (16, 16)},
        {"mode": "no_sync"}, {"mode": "full_sync"}, {"parallelism": "single"}, {"parallelism": "tensor"},
        {"mode": "separate_gn", "warmup_steps": 0}, {"split_batch": True}, {"mode": "corrected_async_gn"},
        {"warmup_steps": "auto", "warmup_threshold": 9.0}, {"comm_checkpoint": 60}, {"bessel_correction": True},
    ]  # fmt: skip
    for options in rounds:
        options = {"split_batch": False, **options}
        assert equal(picture(ours, **options), picture(eager, **options)), options
    assert tape.recordings > 5


def test_a_picture_that_was_stopped_leaves_nothing_behind() -> None:
    ours, eager, tape = pair(EchoMesh)
    for steps in (5, 3, 1, 5, 4, 2, 5):
        assert equal(picture(ours, steps, split_batch=False), picture(eager, steps, split_batch=False))
    assert tape.recordings == 1


def test_what_a_graph_reads_and_writes_is_held() -> None:
    """Memory that somebody may give back would be somebody else's in the next replay."""
    ours, _, tape = pair(EchoMesh)
    picture(ours, split_batch=False)
    (graph,) = ours._graphs._graphs.values()
    held = [*ours.model.parameters(), *ours.model.buffers(), *graph.inputs.values(), *graph._memory.values()]
    held += [*graph._kept, *(output for _, output in graph._texts)]
    for slot in ours._exchange._slots:  # which `layout` stands for
        held += slot.received.values()
    for bucket in ours._exchange._buckets:
        held += [view for views in bucket._outbox.values() for view in views]
    assert tape.outside <= {place_of(tensor) for tensor in held}
    assert len(graph._texts) > 4


def test_more_kinds_than_are_kept() -> None:
    ours, eager, tape = pair(alone)
    sizes = [(8, 8 * width) for width in range(1, CAPACITY + 2)]
    for size in (*sizes, sizes[-1], sizes[0]):
        assert equal(picture(ours, 3, size=size), picture(eager, 3, size=size))
    assert len(ours._graphs) == CAPACITY
    assert tape.recordings == len(sizes) + 1  # the last one was there, the first one was not any more


def test_forgetting_frees() -> None:
    ours, _, _ = pair(EchoMesh)
    picture(ours, split_batch=False)
    (graph,) = ours._graphs._graphs.values()
    gone = [weakref.ref(graph), weakref.ref(graph._tape), weakref.ref(ours._exchange._buckets[0])]
    del graph
    ours.forget()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    picture(ours, split_batch=False)
    (old,) = (weakref.ref(graph) for graph in ours._graphs._graphs.values())
    picture(ours, 1, size=(24, 8), split_batch=False)  # other buffers, so that this one is of no use any more
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("piece", [0, 2])
def test_what_cannot_be_recorded_runs_as_before(piece: int, caplog: pytest.LogCaptureFixture) -> None:
    ours, eager, tape = pair(EchoMesh, fail_in=piece)
    with caplog.at_level(logging.INFO):
        for seed in (1, 2):
            assert equal(picture(ours, seed=seed, split_batch=False), picture(eager, seed=seed, split_batch=False))
    assert tape.recordings == 1  # never again
    (record,) = caplog.records
    assert "without a CUDA graph: RuntimeError: operation not permitted when stream is capturing" in record.message
    assert "\n" not in record.message
    tape.fail_in = None
    assert equal(picture(ours, size=(24, 8), split_batch=False), picture(eager, size=(24, 8), split_batch=False))
    assert tape.recordings == 2  # another kind


def scale_in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def move_weights(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9


def replace_a_module(model: Any) -> None:
    model.conv_out = torch.nn.Conv2d(32, 4, 3, padding=1)


def switch_freeu_like(model: Any) -> None:
    for block in model.mid_block.resnets:
        block.output_scale_factor = 2.0


def plain_attention(model: Any) -> None:
    model.set_attn_processor(AttnProcessor())


@pytest.mark.parametrize("mesh", [alone, EchoMesh])
@pytest.mark.parametrize("change", [scale_in_place, move_weights, replace_a_module, switch_freeu_like, plain_attention])
def test_a_changed_model_is_recorded_anew(mesh: Callable[[], Mesh], change: Callable[[Any], None]) -> None:
    ours, eager, tape = pair(mesh)
    before = picture(ours, split_batch=False)
    change(ours.model)
    found = picture(ours, split_batch=False)
    assert equal(found, picture(eager, split_batch=False))
    assert tape.recordings == 2
    assert change is plain_attention or not torch.equal(found[-3], before[-3])


def hook(model: Any) -> None:
    model.mid_block.register_forward_hook(lambda module, args, output: output * 2)


def sliced_attention(model: Any) -> None:
    model.set_attn_processor(SlicedAttnProcessor(2))


class Counting(AttnProcessor):
    """One that decides by itself."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        return super().__call__(*args, **kwargs) * self.calls


def foreign_attention(model: Any) -> None:
    model.set_attn_processor({name: Counting() for name in model.attn_processors})


def wrapped_forward(model: Any) -> None:
    forward = model.mid_block.forward
    model.mid_block.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 2


def foreign_module(model: Any) -> None:
    kind = type(model.mid_block)
    model.mid_block.__class__ = type("Mine", (kind,), {"__module__": "somebody.elses"})


@pytest.mark.parametrize("change", [hook, sliced_attention, foreign_attention, wrapped_forward, foreign_module])
def test_what_may_decide_by_itself_is_not_recorded(change: Callable[[Any], None]) -> None:
    ours, _, tape = pair(alone)
    change(ours.model)
    picture(ours, parallelism="single")
    assert tape.recordings == 0


@pytest.mark.parametrize(("mesh", "parallelism"), [(alone, "single"), (EchoMesh, "patch")])
def test_adapters_that_are_switched_within_a_picture(mesh: Callable[[], Mesh], parallelism: str) -> None:
    from peft import LoraConfig

    ours, eager, tape = pair(mesh)
    for name in ("one", "two"):
        ours.model.add_adapter(LoraConfig(r=3, target_modules=["to_k", "to_v", "conv1"], init_lora_weights=False), name)

    def drawn(unet: ParallelUNet) -> list[torch.Tensor]:
        unet.begin(DistriConfig(warmup_steps=0, split_batch=False, parallelism=parallelism))
        made = []
        for step in range(12):
            if step in (0, 4, 8):
                unet.set_adapters(["one", "two"], [0.5, 0.3 * step])
            made.append(unet(**inputs_at(step)).sample)
        unet.end()
        return made

    assert equal(drawn(ours), drawn(eager))
    assert tape.recordings == 3  # one for each setting


@pytest.mark.parametrize("name", ["cross_attention_kwargs", "encoder_attention_mask", "mid_block_additional_residual"])
def test_unusual_inputs(name: str) -> None:
    values: dict[str, Any] = {
        "cross_attention_kwargs": {},
        "encoder_attention_mask": torch.ones(2, 7),
        "mid_block_additional_residual": torch.zeros(2, 64, 4, 4),
    }
    ours, eager, tape = pair(alone)
    for step in range(3):
        given = inputs_at(step) | {name: values[name]}
        assert torch.equal(ours(**given).sample, eager(**given).sample)
    assert tape.recordings == 0


def test_timesteps_of_any_type_are_of_one_kind() -> None:
    ours, eager, tape = pair(alone)
    for timestep in (901, 801.5, torch.tensor(701), torch.tensor([600.25]), torch.tensor(501, dtype=torch.float64)):
        given = inputs_at(0) | {"timestep": timestep}
        assert torch.equal(ours(**given).sample, eager(**given).sample)
    assert tape.recordings == 1


def test_text_that_changes_within_a_picture() -> None:
    ours, eager, tape = pair(alone)
    for step, seed in enumerate((1, 1, 1, 2, 2, 1)):
        given = inputs_at(step, seed=seed)
        assert torch.equal(ours(**given).sample, eager(**given).sample)
    with torch.no_grad():
        given["encoder_hidden_states"].mul_(1.5)  # in place
    assert torch.equal(ours(**given).sample, eager(**given).sample)
    assert tape.recordings == 1


def test_in_and_out_of_inference_mode() -> None:
    ours, eager, tape = pair(EchoMesh)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            assert equal(picture(ours, split_batch=False), picture(eager, split_batch=False))
    assert tape.recordings == 1


def test_under_autocast_nothing_is_recorded() -> None:
    ours, _, tape = pair(alone)
    with torch.autocast("cpu"):
        picture(ours)
    assert tape.recordings == 0


def test_another_architecture() -> None:
    model, tape = tiny_sd15_unet(), DispatchRecorder()
    unets = [PlainUNet(model, DistriConfig(), EchoMesh(), recorder=each) for each in (tape, None)]
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 48)
    for unet in unets:
        unet.begin(DistriConfig(warmup_steps=0, split_batch=False))
    for step in range(5):
        ours, eager = (unet(sample * (1 - 0.1 * step), 900 - step, text).sample for unet in unets)
        assert torch.equal(ours, eager)
    assert tape.recordings == 1


def test_preparing_records_for_the_first_picture() -> None:
    text = {name: part.repeat(1, 11, 1) if part.ndim == 3 else part for name, part in tiny_embeddings().items()}
    config, tape, made = DistriConfig(height=128, width=128), DispatchRecorder(), []
    for recorder in (tape, None):
        pipe = DistriSDXLPipeline(tiny_sdxl_pipeline(), config, alone())
        pipe.unet = PlainUNet(pipe.unet.unet, config, pipe.mesh, recorder=recorder)
        pipe.set_progress_bar_config(disable=True)
        pipe.prepare()
        before = tape.replays
        noise = torch.Generator().manual_seed(3)
        made.append(pipe(**text, num_inference_steps=4, output_type="latent", generator=noise).images)
        assert tape.recordings == 1
        assert tape.replays - before == (0 if recorder is None else 4)
    assert torch.equal(*made)


def mixed(modes: list[str]) -> list[list[Any]]:
    """On a rank: pictures over messages, where all ranks replay, where rank 0 alone does, and where nobody does."""
    from distri_engine import open_mesh

    results = []
    with torch.no_grad(), open_mesh(DistriConfig()) as opened:
        mesh = Mesh.of_default_group(opened.device, shared_memory=False)
        for who in ((0, 1), (0,), ()):
            tape = DispatchRecorder() if mesh.rank in who else None
            unet = PlainUNet(tiny_sdxl_unet(), DistriConfig(), mesh, recorder=tape)
            results.append(
                [each for mode in modes for each in picture(unet, 6, size=(28, 8), mode=mode, split_batch=False)]
            )
            if tape is not None:
                assert tape.recordings == len(modes)
    return results


def test_ranks_need_not_agree_on_who_replays() -> None:
    for both, one, nobody in run_on_ranks(2, mixed, ["corrected_async_gn", "stale_gn"]):
        assert equal(both, nobody)
        assert equal(one, nobody)
