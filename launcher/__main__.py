"""The command line: `python -m launcher generate ...`. Each command reads its options here and does its work in a
module of its own; the page is started by app.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distri_engine.config import DistriConfig, Parallelism, SyncMode
from distri_engine.request import GenerationRequest
from launcher import profile
from launcher.files import write_json
from launcher.generate import Failed, check_target, make_picture
from launcher.options import OneLineParser, add_group_options, factors, number, refuse


def main(argv: list[str] | None = None) -> None:
    """Run one command. Bad arguments: one line on stderr and exit code 2; a failure: one line and exit code 1."""
    parser = OneLineParser(prog="python -m launcher", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_generate(commands.add_parser("generate", help="one picture, no page"))
    profiling = commands.add_parser("profile", help="what a picture costs each device, counted without weights")
    profile.add_options(profiling)
    profiling.set_defaults(run=profile.run)
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
    parser.add_argument("--parallelism", default=config.parallelism.value, help=", ".join(Parallelism))
    parser.add_argument(
        "--mode",
        default=config.mode.value,
        help=f"{', '.join(SyncMode)} (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup-steps", default=str(config.warmup_steps), metavar="N|auto", help="(default: %(default)s)"
    )
    parser.add_argument("--warmup-threshold", type=float, default=config.warmup_threshold, help="ends auto")
    parser.add_argument(
        "--extrapolation",
        default="0.5",
        metavar="A|A,A,A",
        help="factor of mode extrapolated, or three: keys and values, halos, moments (default: %(default)s)",
    )
    parser.add_argument(
        "--extrapolation-memory", default="0.5", metavar="M|M,M,M", help="the same (default: %(default)s)"
    )
    parser.add_argument("--split-scheme", default=config.split_scheme.value, help="row, col or alternate")
    parser.add_argument(
        "--picard-window", type=int, help="timesteps that paradigms refines at once (default: one a rank)"
    )
    parser.add_argument(
        "--picard-tolerance",
        type=float,
        default=config.picard_tolerance,
        help="how far paradigms lets them move, relative to their noise; 0 is exact (default: %(default)s)",
    )
    parser.add_argument("--no-split-batch", action="store_true", help="both guidance branches on every rank")
    parser.add_argument("--no-metadata", action="store_true", help="leave the settings out of the PNG")
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
        metadata=not words.no_metadata,
    )
    config = DistriConfig(
        parallelism=words.parallelism,
        mode=words.mode,
        warmup_steps=number(words.warmup_steps, int),
        warmup_threshold=words.warmup_threshold,
        extrapolation=factors(words.extrapolation),
        extrapolation_memory=factors(words.extrapolation_memory),
        split_scheme=words.split_scheme,
        split_batch=not words.no_split_batch,
        picard_window=words.picard_window,
        picard_tolerance=words.picard_tolerance,
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
        write_json(report, words.report)
    seconds = report["seconds"]
    made, parts = report["request"], ", ".join(f"{name} {seconds[name]:.2f}" for name in seconds if name != "total")
    print(
        f"{report['image']}: {made['width']} x {made['height']}, {made['steps']} steps, seed {made['seed']}, "
        f"{report['ranks']} x {report['device']}, {seconds['total']:.2f} s ({parts})"
    )


if __name__ == "__main__":
    main()
