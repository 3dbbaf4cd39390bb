"""Whether negative prompts mean something: pictures of prompts that leave a thing open, without and with a negative
prompt that names it, and how often the judge (assets/demo_judge) sees it in both.

    python -m assets.demo_training.negative --pipeline build/demo/pipeline --folder outputs/negative
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.demo_training.grammar import COLOURS, SUBJECTS
from assets.demo_training.measure import Run, add_options, make, share, write


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What a negative prompt names, and which of the judge's answers says that it is there."""

    prompt: str
    question: str
    answer: str


REFUSALS = (
    Refusal(prompt="night", question="time", answer="night"),
    Refusal(prompt="sunset", question="time", answer="sunset"),
    Refusal(prompt="mountains", question="ground", answer="mountains"),
    Refusal(prompt="snow, winter", question="ground", answer="snow"),
    Refusal(prompt="a sun", question="orb", answer="sun"),
    Refusal(prompt="rain", question="weather", answer="rain"),
)
RUN = Run(title="one device", steps=20)


def captions(count: int) -> list[str]:
    """Prompts that say nothing but a subject and its colour: "a red house"."""
    named = [(colour, subject) for colour in COLOURS for subject in SUBJECTS if subject != "none"]
    pairs = [named[7 * index % len(named)] for index in range(count)]  # 7 has no divisor in common with their number
    words = {"balloon": "hot air balloon"}
    return [
        f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {words.get(subject, subject)}" for colour, subject in pairs
    ]


def seen(options: argparse.Namespace, folder: Path, count: int) -> list[dict[str, str]]:
    """What the judge says of the pictures of a folder."""
    from distri_engine.evaluation.judge import judged, load_judge

    return list(judged(load_judge(options.judge), [folder / f"{index:04d}.png" for index in range(count)]).answers)


def main(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make, judge, print, write."""
    prompts = captions(options.count)
    make(options, options.folder / "open", RUN, prompts)
    without = seen(options, options.folder / "open", len(prompts))
    print("| negative prompt | pictures that show it, without | with |")
    print("|---|---|---|", flush=True)
    rows: list[dict[str, Any]] = []
    for refusal in REFUSALS:
        folder = options.folder / refusal.prompt.replace(", ", "-").replace(" ", "-")
        make(options, folder, RUN, prompts, negative=refusal.prompt)
        shares = [
            share([answer[refusal.question] == refusal.answer for answer in answers])
            for answers in (without, seen(options, folder, len(prompts)))
        ]
        rows.append({"negative": refusal.prompt, "without": shares[0], "with": shares[1]})
        print(f"| {refusal.prompt} | {shares[0]} | {shares[1]} |", flush=True)
    write(options.folder / "table.json", {"captions": len(prompts), "rows": rows})
    return rows


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what negative prompts do.")
    add_options(parser, count=60)
    parser.set_defaults(folder=Path("outputs/negative"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse_options())
