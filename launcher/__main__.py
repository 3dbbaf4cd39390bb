"""The command line: `python -m launcher generate ...`. Each command has a module of its own, for its options and
its work; the page is started by app.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launcher import benchmark, coco, dump_coco, export_html, metrics, profile
from launcher.batch import Failed
from launcher.files import check_apart, check_target, write_json
from launcher.generate import make_picture
from launcher.measure import Unmeasured
from launcher.options import OneLineParser, add_group_options, named, refuse
from launcher.picture_options import add_picture_options, config_of, request_of
from launcher.process import exit_on_sigterm


def main(argv: list[str] | None = None) -> None:
    """Run one command. Bad arguments: one line on stderr and exit code 2; a failure: one line and exit code 1."""
    parser = OneLineParser(prog="python -m launcher", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_generate(commands.add_parser("generate", help="one picture, no page"))
    for name, module, about in (
        ("profile", profile, "what a picture costs each device, counted without weights"),
        ("benchmark", benchmark, "how long pictures take in several ways, measured in turns"),
        ("coco", coco, "one picture a caption"),
        ("dump-coco", dump_coco, "the photographs of captions"),
        ("export-html", export_html, "folders of pictures side by side, as one page"),
        ("metrics", metrics, "how two folders of pictures compare"),
    ):
        one = commands.add_parser(name, help=about)
        module.add_options(one)
        one.set_defaults(run=module.run)
    words = parser.parse_args(argv)
    try:
        words.run(words)
    except ValueError as error:
        refuse(error)
    except (Failed, Unmeasured, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, help="what the picture shows")
    parser.add_argument("--output", required=True, type=named, metavar="PNG", help="where the picture goes")
    parser.add_argument("--seed", type=int, help="(default: random)")
    add_picture_options(parser)
    parser.add_argument("--no-metadata", action="store_true", help="leave the settings out of the PNG")
    parser.add_argument("--image", help="a picture to start from, scaled and cut to the size (default: noise)")
    parser.add_argument(
        "--strength", type=float, default=0.6, help="with --image, the share of the steps that is made (default: 0.6)"
    )
    add_group_options(parser)
    parser.add_argument("--report", type=Path, metavar="JSON", help="write the figures of every step and rank there")
    parser.set_defaults(run=_generate)


def _generate(words: argparse.Namespace) -> None:
    how = {"metadata": not words.no_metadata, "image": words.image, "strength": words.strength}
    request = request_of(words, prompt=words.prompt, seed=words.seed, **how)
    config = config_of(words)
    if words.report is not None:
        check_target(words.report, "report.json")
        check_apart(output=words.output, report=words.report)
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
    exit_on_sigterm()
    main()
