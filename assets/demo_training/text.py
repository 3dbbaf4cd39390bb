"""The tokenizers, a CLIP byte-level BPE learnt on our captions, and two tiny CLIP text encoders. They are trained
together with the UNet by train_unet.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from assets.demo_training.captions import caption
from assets.demo_training.grammar import sample_scene

LENGTH = 77  # tokens, as in CLIP
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"tokenizer": END, "tokenizer_2": "!"}  # by folder, as in SDXL
# Words that people may type and that no caption contains: they get whole tokens instead of bytes.
EXTRA_WORDS = (
    "city street car person man woman cat dog bird flower garden river lake waterfall bridge tower road cloud rain "
    "rainbow fog island beach palm forest village church farm volcano ship airplane bright colorful vibrant large "
    "small big tiny old red round very with without and two three one many best quality low blurry ugly cartoon "
    "minimal vector style cinematic gold golden silver turquoise teal cyan"
)
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_tokenizers(folder: Path, captions: int = 6000) -> None:
    """Learn the vocabulary and write `folder`/tokenizer and `folder`/tokenizer_2 in the files that SDXL ships."""
    merges = _learn_merges(captions)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [byte + "</w>" for byte in alphabet] + [left + right for left, right in merges]
    tokens = [*dict.fromkeys(tokens), BEGIN, END]  # the end of text has the highest id, by which CLIP finds it
    tokens.remove("!")
    tokens.insert(0, "!")  # id 0, with which SDXL pads tokenizer_2
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END}
    for name, pad in PADS.items():
        out = folder / name
        out.mkdir(parents=True, exist_ok=True)
        _write_json(out / "vocab.json", vocabulary)
        lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
        (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
        described = {kind: {"content": token, **flags} for kind, token in special.items()}
        _write_json(out / "special_tokens_map.json", {**described, "pad_token": pad})
        settings = {
            "add_prefix_space": False,
            **special,
            "pad_token": pad,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": LENGTH,
            "tokenizer_class": "CLIPTokenizer",
            "clean_up_tokenization_spaces": True,
        }
        _write_json(out / "tokenizer_config.json", settings)


def _learn_merges(captions: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(7)
    corpus = [caption(sample_scene(rng), rng) for _ in range(captions)] + [EXTRA_WORDS] * 40
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1412,  # more than the captions need: every merge that occurs is taken
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """The two tokenizers of `folder`."""
    first, second = (CLIPTokenizer.from_pretrained(str(folder / name)) for name in PADS)
    return first, second


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Captions as ids, [captions, 77]."""
    encoded = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    return torch.tensor(np.array(encoded, dtype=np.int32))


def build_encoders(
    vocabulary: int, width: int = 64, width_2: int = 128, layers: int = 2
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two untrained text encoders in the roles of SDXL's CLIP-L and OpenCLIP-bigG."""
    shared = {
        "vocab_size": vocabulary,
        "max_position_embeddings": LENGTH,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "num_hidden_layers": layers,
        "attention_dropout": 0.0,
    }

    def config(width: int, activation: str, pad: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=width // 32,
            projection_dim=width,
            hidden_act=activation,
            pad_token_id=pad,
            **shared,
        )

    first = CLIPTextModel(config(width, "quick_gelu", vocabulary - 1))
    second = CLIPTextModelWithProjection(config(width_2, "gelu", 0))
    # Larger than CLIP's 0.02: a small model learns faster from it.
    scales = {"token_embedding": 0.3, "position_embedding": 0.1}
    for encoder in (first, second):
        for ending, scale in scales.items():
            (embedding,) = (module for name, module in encoder.named_modules() if name.endswith(ending))
            embedding.weight.data.normal_(0, scale)
    return first, second


def encode_text(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, ids: torch.Tensor, ids_2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As StableDiffusionXLPipeline.encode_prompt: both penultimate hidden states, [B, 77, width + width_2], and the
    second encoder's pooled embedding, [B, width_2].
    """
    one, two = first(ids, output_hidden_states=True), second(ids_2, output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds
