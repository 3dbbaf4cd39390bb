"""The command line: `python -m launcher generate ...`. Each command reads its options here and does its work in a
module of its own; the page is started by app.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher.generate import Failed, check_target, make_picture
from launcher.options import OneLineParser, add_group_options, refuse


def main(argv: list[str] | None = None) -> None:
    """Run one command. Bad arguments: one line on stderr and exit code 2; a failure: one line and exit code 1."""
    parser = OneLineParser(prog="python -m launcher", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_generate(commands.add_parser("generate", help="one picture, no page"))
    words = parser.parse_args(argv)
    try:
        words.run(words)
    except ValueError as error:
        refuse(error)
    except (Failed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    request, config = GenerationRequest(prompt="-"), DistriConfig()  # for the defaults
    parser.add_argument("--prompt", required=True, help="what the picture shows")
    parser.add_argument("--negative-prompt", default="", help="what it should not show")
    parser.add_argument("--output", required=True, type=Path, metavar="PNG", help="where the picture goes")
    parser.add_argument("--height", type=int, help="pixels (default: the model's size)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's size)")
    parser.add_argument("--steps", type=int, default=request.steps, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=request.guidance_scale, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, help="(default: random)")
    parser.add_argument("--scheduler", default=request.scheduler.value, help="ddim, euler or dpm-solver")
    parser.add_argument("--parallelism", default=config.parallelism.value, help="single, naive_patch or patch")
    parser.add_argument(
        "--mode",
        default=config.mode.value,
        help="full_sync, sync_gn, stale_gn, corrected_async_gn (default), separate_gn or no_sync",
    )
    parser.add_argument("--warmup-steps", type=int, default=config.warmup_steps, help="(default: %(default)s)")
    parser.add_argument("--split-scheme", default=config.split_scheme.value, help="row, col or alternate")
    parser.add_argument("--no-split-batch", action="store_true", help="both guidance branches on every rank")
    add_group_options(parser)
    parser.add_argument("--report", type=Path, metavar="JSON", help="write the figures of every step and rank there")
    parser.set_defaults(run=_generate)


def _generate(words: argparse.Namespace) -> None:
    request = GenerationRequest(
        prompt=words.prompt,
        negative_prompt=words.negative_prompt,
        height=words.height,
        width=words.width,
        steps=words.steps,
        guidance_scale=words.guidance_scale,
        seed=words.seed,
        scheduler=words.scheduler,
    )
    config = DistriConfig(
        parallelism=words.parallelism,
        mode=words.mode,
        warmup_steps=words.warmup_steps,
        split_scheme=words.split_scheme,
        split_batch=not words.no_split_batch,
    )
    if words.report is not None:
        check_target(words.report, "report.json")
    report = make_picture(
        request,
        config,
        words.output,
        ranks=words.ranks,
        device=words.device,
        model=words.model,
        text_encoder_on=words.text_encoder_on,
    )
    if words.report is not None:
        words.report.write_text(json.dumps(report, indent=2) + "\n")
    seconds = report["seconds"]
    made, parts = report["request"], ", ".join(f"{name} {seconds[name]:.2f}" for name in seconds if name != "total")
    print(
        f"{report['image']}: {made['width']} x {made['height']}, {made['steps']} steps, seed {made['seed']}, "
        f"{report['ranks']} x {report['device']}, {seconds['total']:.2f} s ({parts})"
    )


if __name__ == "__main__":
    main()
