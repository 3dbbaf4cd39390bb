"""Trains the judge on scenes drawn for it, and writes its weights: about a quarter of an hour of one core.

    python -m assets.demo_judge.train --output assets/demo_judge/judge.safetensors

Stopped while it trains, it begins again, with the pictures that it drew.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from assets.demo_judge.drawing import ANSWERS, UNKNOWN, examples
from assets.demo_judge.flaws import decoded, flawed, jpeg
from distri_engine.evaluation.judge import HEADS_KEY, SIDE, Judge, load_judge

TRAINING_SEED, TEST_SEED = 7_001, 7_002  # of the drawings; neither is one of assets/demo_training's
JPEGS = 0.3  # share of pictures that went through JPEG
DECODED = 0.25  # and of those that went through the embedded model's autoencoder
MODEL = Path(__file__).resolve().parents[1] / "demo_model"


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the judge of the embedded model's world.")
    parser.add_argument("--folder", type=Path, default=Path("build/judge"), help="where the drawn pictures are kept")
    parser.add_argument("--output", type=Path, default=Path("assets/demo_judge/judge.safetensors"))
    parser.add_argument("--pictures", type=int, default=12000)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    return parser.parse_args(arguments)


def lessons(folder: Path, name: str, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and answers of `folder`, drawn now if they are not there."""
    file = folder / f"{name}-{SIDE}-{seed}-{count}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pictures, answers = examples(seed, count)
        rng = np.random.default_rng(seed + 1)
        vae = AutoencoderKL.from_pretrained(MODEL, subfolder="vae", dtype=torch.float32)
        for some in np.array_split(np.flatnonzero(rng.random(count) < DECODED), -(-count // 20)):
            if len(some):
                pictures[some] = decoded(vae, pictures[some], rng)
        for index in np.flatnonzero(rng.random(count) < JPEGS):
            pictures[index] = jpeg(pictures[index], int(rng.integers(30, 91)))
        drawing = file.with_suffix(".tmp.npz")
        np.savez(drawing, pictures=pictures, answers=answers)
        drawing.replace(file)
    content = np.load(file)
    return content["pictures"], content["answers"]


def train(options: argparse.Namespace) -> Judge:
    """Draw, train, and return the judge."""
    pictures, answers = lessons(options.folder, "training", TRAINING_SEED, options.pictures)
    torch.manual_seed(0)
    judge = Judge(ANSWERS)
    steps = options.epochs * (len(pictures) // options.batch)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=options.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, pct_start=0.15)
    began = time.monotonic()
    step, running = 0, 0.0
    while step < steps:
        for chosen in torch.randperm(len(pictures)).split(options.batch)[: len(pictures) // options.batch]:
            x = torch.from_numpy(pictures[chosen.numpy()]).permute(0, 3, 1, 2).float() / 255
            loss = _loss(judge, flawed(x), torch.from_numpy(answers[chosen.numpy()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            running += (float(loss.detach()) - running) * max(0.02, 1 / step)
            if step % 100 == 0:
                print(f"step {step} of {steps}, loss {running:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return judge.eval()


def _loss(judge: Judge, pictures: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    scores = judge.logits(judge(pictures)).values()
    columns = answers.unbind(1)
    return torch.stack(
        [
            F.cross_entropy(score, right, ignore_index=UNKNOWN, label_smoothing=0.05)
            for score, right in zip(scores, columns, strict=True)
        ]
    ).sum()


def standardise(judge: Judge, pictures: np.ndarray) -> None:
    """Shift and scale the features so that over `pictures` each has mean 0 and deviation 1; answers stay the same."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features = torch.cat([judge(batch) for batch in x.split(32)])
        mean, spread = features.mean(0), features.std(0)
        for head in judge.heads.values():
            head.bias += head.weight @ mean
            head.weight *= spread
        judge.neck.weight /= spread[:, None]
        judge.neck.bias.sub_(mean).div_(spread)


def main() -> None:
    """Train, test, save."""
    options = parse_options()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    judge = train(options)
    pictures, _ = lessons(options.folder, "training", TRAINING_SEED, options.pictures)
    standardise(judge, pictures[:2000])
    save(judge, options.output)
    report(load_judge(options.output), *lessons(options.folder, "test", TEST_SEED, options.tests))


def report(judge: Judge, pictures: np.ndarray, answers: np.ndarray) -> None:
    """Print how often each head is right on pictures that it has not seen, and how often it is wrong about doubles."""
    torch.manual_seed(1)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    for name, seen in (("as drawn", x), ("with flaws", torch.cat([flawed(batch) for batch in x.split(1)]))):
        given = said(judge, seen)
        right = {head: (given[head] == truth)[truth != UNKNOWN] for head, truth in zip(given, answers.T, strict=True)}
        print(f"{name}:", ", ".join(f"{head} {hits.mean():.1%}" for head, hits in right.items()))
        doubled, truth = given["subjects"] == 2, answers[:, -1] == 2
        found, alarms = doubled[truth], doubled[~truth]
        print(f"{name}: {found.sum()} of {len(found)} doubled found, {alarms.sum()} of {len(alarms)} others called so")


def said(judge: Judge, pictures: torch.Tensor) -> dict[str, np.ndarray]:
    """The number of every head's likeliest answer for pictures [B, 3, SIDE, SIDE]."""
    with torch.no_grad():
        scores = judge.logits(torch.cat([judge(batch) for batch in pictures.split(32)]))
    return {name: score.argmax(1).numpy() for name, score in scores.items()}


def save(judge: Judge, file: Path) -> None:
    """Write the weights, float16, with the heads' answers beside them."""
    tensors = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    save_file(tensors, file, metadata={HEADS_KEY: json.dumps(ANSWERS)})


if __name__ == "__main__":
    main()
