"""The command line ``vlm``: what can be typed, and how errors end.

Results go to stdout or ``--out``, everything else to stderr. Exit codes: 0 all good; 1 nothing could be done; 2 the
command or its request is wrong; 3 some files failed, and have their rows.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

_SCHEMA = "receipt, invoice, form, id-card or table; a JSON schema or short template as a file or as JSON; or module:Class of a Pydantic model"
_CONVERT = "Write a checkpoint in our layout, or back in its family's; pickles become safetensors."
_DTYPES = ("float32", "bfloat16", "float16")
_EPILOG = "exit codes: 0 all good, 1 nothing could be done, 2 wrong command or request, 3 some files failed (their rows say why)"


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The whole grammar."""
    about = "Captions, answers, JSON, boxes and text from images, with diffusion vision-language models."
    parser = Parser(prog="vlm", description=about, epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    common, model, images, decoding = _common_options(), _model_options(), _image_options(), _decoding_options()
    text = argparse.ArgumentParser(add_help=False)
    text.add_argument("--max-new-tokens", type=int, metavar="N", help="length of the answer's canvas")

    def add(name: str, help_: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        shared: Any = [common, *parents]
        command: argparse.ArgumentParser = commands.add_parser(name, help=help_, description=help_, parents=shared, epilog=_EPILOG, allow_abbrev=False)
        command.set_defaults(parser=command)
        return command

    add("caption", "Say what is on each image.", model, images, decoding, text)
    ask = add("ask", "Answer a question about each image.", model, images, decoding, text)
    ask.add_argument("-q", "--question", required=True, help="what to ask")
    extract = add("extract", "Fill a JSON schema from each image.", model, images, decoding)
    extract.add_argument("-s", "--schema", required=True, metavar="SCHEMA", help=_SCHEMA)
    extract.add_argument(
        "--lenient", action="store_true", help="leave out schema keywords that cannot be guaranteed, and say so in the rows, instead of refusing the schema"
    )
    ground = add("ground", "Find the widget an instruction speaks of.", model, images, decoding)
    ground.add_argument("-i", "--instruction", required=True, help="what to do on the screen")
    add("read", "Read the text of each image.", model, images)
    report = add("report", "Show rows with their pages, as one HTML file.")
    report.add_argument("rows", metavar="ROWS.jsonl", help="what vlm extract wrote")
    report.add_argument("--out", metavar="FILE.html", help="default: ROWS.html")
    report.add_argument("--limit", type=int, default=500, metavar="N", help="pages shown, the least sure first (default 500)")
    corrections = add("corrections", "Turn corrected rows into training data.")
    corrections.add_argument("rows", metavar="ROWS.jsonl", help="what vlm extract wrote")
    corrections.add_argument("corrected", metavar="CORRECTED", help="the rows that somebody went through, as .csv or .jsonl")
    corrections.add_argument("-s", "--schema", required=True, metavar="SCHEMA", help="the schema of the rows")
    corrections.add_argument("--out", required=True, metavar="FOLDER", help="for pages and conversations.jsonl")
    info = add("info", "Describe a checkpoint from its headers, or the model and the environment.", model)
    info.add_argument("checkpoint", nargs="?", metavar="PATH|ID", help="folder or Hub id (default: pocket); exit code 1 if its keys do not fit")
    info.add_argument("--json", action="store_true", help="as JSON")
    convert = add("convert", _CONVERT)
    convert.set_defaults(threads=None)
    convert.add_argument("source", metavar="PATH|ID", help="folder or Hub id: safetensors, or .bin files, which a process of its own reads, weights only")
    convert.add_argument("target", metavar="FOLDER", help="new folder; a stopped conversion goes on there")
    convert.add_argument("--to", choices=("native", "published"), default="native", help="our layout (default), or back to the family's own")
    convert.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: as stored, bit for bit)")
    convert.add_argument("--family", help="when config.json does not tell")
    convert.add_argument("--shard-gb", type=float, default=5.0, metavar="GB", help="size of a file, and memory that is needed (default 5)")
    convert.add_argument("--json", action="store_true", help="say what was done as JSON")
    demo = add("demo", "Open the browser front end (needs the extra 'demo').", model)
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    demo.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on; 0 takes a free one (default 7860)")
    demo.add_argument("--open", action="store_true", help="open a browser window")
    demo.add_argument("--infill", action="store_true", help="offer the Infill page although other machines can reach the server")
    bench = add("bench", "Time tasks on the given images.", model, decoding)
    _add_images(bench)
    bench.add_argument("--tasks", help="comma-separated; default: every task whose question, schema or instruction is given, caption and read always")
    bench.add_argument("-q", "--question", help="for ask")
    bench.add_argument("-s", "--schema", metavar="SCHEMA", help="for extract")
    bench.add_argument("-i", "--instruction", help="for ground")
    bench.add_argument("--repeat", type=int, default=3, metavar="N", help="runs over the images after one to warm up (default 3)")
    bench.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _common_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--debug", action="store_true", help="show tracebacks")
    options.add_argument("--quiet", action="store_true", help="no progress and no summary on stderr")
    return options


def _model_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--model", metavar="PATH|ID", help="checkpoint folder or Hub id (default: pocket, the embedded model)")
    options.add_argument("--device", metavar="NAME", help="'cpu' (default), 'cuda', ... for published checkpoints")
    options.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: as stored)")
    options.add_argument("--device-map", choices=("auto",), help="spread the layers over GPUs, host memory and disk (needs accelerate)")
    options.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    return options


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="INPUT", help="images, PDFs, folders, patterns, .zip or .tar files, @FILE with a name a line, - for stdin")
    parser.add_argument("--recursive", action=argparse.BooleanOptionalAction, default=True, help="scan folders to any depth (default)")


def _image_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    _add_images(options)
    files = options.add_argument_group("input files")
    files.add_argument("--pages", metavar="RANGE", help="of PDF, TIFF, GIF and WebP, such as 1-3,7,10- (default: all)")
    files.add_argument("--dpi", type=float, default=150.0, help="at which PDF pages are drawn (default 150)")
    files.add_argument("--password", help="of protected PDFs")
    files.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for opening a file, and for decoding each page (default 60)")
    files.add_argument("--workers", type=int, default=2, metavar="N", help="decoding threads, each with a process that can be killed (default 2)")
    files.add_argument("--memory", type=int, default=256, metavar="MIB", help="of decoded pages that may wait (default 256)")
    files.add_argument("--shard", metavar="I/N", help="only part I of N, split by the ids of pages; auto: by RANK and WORLD_SIZE")
    rows = options.add_argument_group("rows")
    rows.add_argument("--json", action="store_true", help="one JSON object a line on stdout, with confidence, boxes and usage")
    rows.add_argument("--out", metavar="FILE", help="write rows to .jsonl, .csv or .parquet; a run that was interrupted goes on where it ended")
    rows.add_argument("--overwrite", action="store_true", help="begin --out anew")
    rows.add_argument("--retry-errors", action="store_true", help="do pages again whose rows in --out are errors")
    rows.add_argument("--on-error", choices=("row", "stop"), default="row", help="what a bad page does: give a row and go on (default), or end the run")
    rows.add_argument("--merge", choices=("per_page", "per_doc"), default="per_page", help="a row for each page (default), or for each document")
    rows.add_argument("--report", metavar="FILE.html", help="also write a page for people: thumbnails, boxes, the least sure first")
    rows.add_argument("--batch-size", type=int, default=8, metavar="N", help="pages computed together (default 8); halved when memory is short")
    rows.add_argument("--processes", type=int, default=1, metavar="N", help="models that share the pages, each in its own process (default 1)")
    return options


def _decoding_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--preset", help="decoding method (vlm info lists them)")
    options.add_argument("--seed", type=int, default=0, help="of random draws (default 0)")
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the preset, e.g. gamma=0.95; may be repeated")
    return options


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Checked arguments; leaves with exit code 2 and one line for anything unknown."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen: argparse.ArgumentParser = getattr(args, "parser", parser)
        close = difflib.get_close_matches(unknown[0].split("=")[0], list(chosen._option_string_actions), n=1)
        chosen.error(f"unknown option {unknown[0]}{f', did you mean {close[0]}?' if close else ''}")
    if args.command is None and not args.version:
        parser.print_help()
        parser.exit(2)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Errors end in one line, with ``--debug`` in a traceback."""
    args = parse(argv)
    try:
        if args.version:
            from vlm.version import VERSION

            print(f"vlm {VERSION}")
            return 0
        import vlm  # noqa: F401  says what is wrong with the environment before anything else is imported
        from app import commands

        return commands.run(args)
    except KeyboardInterrupt:
        print("vlm: stopped; the rows written so far are complete", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if getattr(args, "debug", False):
            traceback.print_exc()
        print(f"vlm: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return _code(error)


def _code(error: Exception) -> int:
    """2 where the request is wrong, 1 for the rest."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return 2 if names & {"SchemaError", "OptionError", "PromptError"} and "ContextLengthError" not in names else 1
