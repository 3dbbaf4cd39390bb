"""The judge of the embedded model's world: a small network that says what a picture shows, and how many subjects. Its
training is assets/demo_judge's business, and what its answers are held against is metrics.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from distri_engine.evaluation.likeness import opened

SIDE = 96  # pictures are shrunk, or stretched, to this before they are judged
# Channels and stride, layer by layer.
WIDTHS = ((16, 2), (32, 2), (64, 1), (64, 2), (96, 1), (128, 2), (128, 1), (160, 2))
FEATURES = 24  # few, because their covariance is taken from as few as 40 pictures
BATCH = 32
HEADS_KEY = "heads"  # of the file's metadata: what each head can answer, as JSON


class Judge(nn.Module):
    """Convolutions, the mean and the maximum over the picture, a few features, and one linear head a question."""

    def __init__(self, heads: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.answers = {name: tuple(answers) for name, answers in heads.items()}
        layers: list[nn.Module] = []
        before = 3
        for width, stride in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.neck = nn.Linear(2 * before, FEATURES)
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(answers)) for name, answers in self.answers.items()})

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features [B, FEATURES] of pictures [B, 3, SIDE, SIDE] in [0, 1]."""
        x = self.body(pictures * 2 - 1)
        return self.neck(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))

    def logits(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores [B, answers] of every head for features [B, FEATURES]."""
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Verdict:
    """What the judge says of some pictures."""

    features: torch.Tensor  # [pictures, FEATURES]
    answers: tuple[dict[str, str], ...]  # one a picture: the likeliest answer of every head


def load_judge(file: Path) -> Judge:
    """The judge of a safetensors file. Raises OSError if it cannot be read."""
    with safe_open(file, "pt") as content:
        judge = Judge(json.loads(content.metadata()[HEADS_KEY]))
        judge.load_state_dict({name: content.get_tensor(name).float() for name in content.keys()})  # noqa: SIM118
    return judge.eval()


def judged(judge: Judge, pictures: Sequence[Path]) -> Verdict:
    """The judge's verdict on picture files of any size. Raises ValueError if one is no picture."""
    with torch.no_grad():
        batches = [pictures[first : first + BATCH] for first in range(0, len(pictures), BATCH)]
        features = torch.cat([judge(torch.stack([as_input(path) for path in batch])) for batch in batches])
        best = {name: scores.argmax(1).tolist() for name, scores in judge.logits(features).items()}
    answers = [{name: judge.answers[name][best[name][i]] for name in best} for i in range(len(pictures))]
    return Verdict(features, tuple(answers))


def right(answers: Sequence[Mapping[str, str]], scenes: Sequence[Mapping[str, Any]], question: str) -> list[bool]:
    """Whether answers[i] is what scenes[i] asks for, of the scenes that ask: None asks nothing, and no subject has no
    colour. Of stripes either colour is right: nobody can tell which of them is the subject's.
    """
    return [
        answer[question] == scene[question]
        or (question == "colour" and bool(scene.get("striped")) and answer[question] == scene["accent"])
        for answer, scene in zip(answers, scenes, strict=True)
        if scene.get(question) is not None and (question != "colour" or scene["subject"] != "none")
    ]


def as_input(path: Path) -> torch.Tensor:
    """The picture at `path` as the judge wants it: [3, SIDE, SIDE] in [0, 1]."""
    small = opened(path).resize((SIDE, SIDE), Image.Resampling.BILINEAR)  # Pillow averages when shrinking
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
