"""The `llasm` command: one subcommand for each job; each loads its room only when it is called."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llasm.errors import LlasmError


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 a mistake in what was given (one line on stderr), 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="llasm", description="A speech-language chat model to run, fine-tune and evaluate."
    )
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    _add_chat(jobs)
    _add_models(jobs)
    _add_export(jobs)
    jobs.add_parser("serve", help="the web demo and an OpenAI-compatible API on one port: llasm serve --help")
    jobs.add_parser("data", help="make, check and export spoken data sets: llasm data --help")
    jobs.add_parser("train", help="run a recipe: llasm train RECIPE [--key value …]; llasm train --help")
    jobs.add_parser("eval", help="ask a model a set of spoken questions and score it: llasm eval --help")
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in _OWN_OPTIONS:
            _OWN_OPTIONS[argv[0]](argv[1:])
        else:
            args = parser.parse_args(argv)
            args.run(args)
    except LlasmError as error:
        print(f"llasm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("llasm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that may not be written to
        where = f"{error.filename}: " if error.filename else ""
        print(f"llasm: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _job(jobs: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    parser = jobs.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_chat(jobs: Any) -> None:
    parser = _job(jobs, "chat", _chat, "answer spoken questions; without files, an interactive chat")
    parser.add_argument("files", nargs="*", metavar="FILE", help="audio of the user's turn, in this order")
    parser.add_argument("--text", help="text of the user's turn, after the audio")
    parser.add_argument("--model", default="llasm-tiny", help="llasm-tiny, a checkpoint's directory or a hub id")
    parser.add_argument("--speak", metavar="OUT.wav", type=Path, help="also write the answer as speech")
    parser.add_argument("--voice", default="hibari", help="who speaks it: engine or engine:voice")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="length limit of the answer, in tokens")


def _chat(args: argparse.Namespace) -> None:
    from llasm import audio, terminal

    if args.speak and not args.speak.parent.is_dir():
        raise LlasmError(f"{args.speak}: the folder {args.speak.parent} does not exist")
    # What is wrong with a file should be said before any weights load.
    for file in args.files:
        audio.decode(file)
    quiet()
    from llasm import chat

    model = chat.load(args.model)
    if not args.files and not args.text:
        terminal.interact(model, args.max_new_tokens)
        return
    content: list[dict[str, Any]] = [{"type": "audio", "audio": file} for file in args.files]
    if args.text:
        content.append({"type": "text", "text": args.text})
    messages = [{"role": "user", "content": content}]
    stream = model.stream(messages, max_new_tokens=args.max_new_tokens)
    for piece in stream:
        if not args.json:
            print(piece, end="", flush=True)
    reply = stream.reply
    assert reply is not None
    if args.json:
        timings = {"load": model.load_ms, **reply.timings_ms}
        result = {
            "text": reply.text,
            "n_audio_tokens": reply.n_audio_tokens,
            "audio_seconds": round(reply.audio_seconds, 3),
            "timings_ms": {name: round(ms, 1) for name, ms in timings.items()},
            "model": args.model,
        }
        print(json.dumps(result, ensure_ascii=False))
    else:
        print()
    if args.speak:
        terminal.speak(reply.text, args.voice, args.speak)


def quiet() -> None:
    """Keeps the libraries' own progress bars and notes out of the answer."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT's


def _add_models(jobs: Any) -> None:
    parser = _job(jobs, "models", _models, "list the embedded base models, or fetch one")
    parser.add_argument("action", choices=["list", "pull"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="pull: embedded names or hub ids")


def _models(args: argparse.Namespace) -> None:
    from llasm import weights

    if args.action == "pull":
        if not args.names:
            raise LlasmError(f"pull what? embedded are {', '.join(weights.EMBEDDED)}; a hub id works too")
        for name in args.names:
            print(f"{name}: {weights.resolve(name)}")
        return
    for model in weights.list_models():
        state = f"{model['size'] / 1e6:.0f} MB" if model["pulled"] else "not pulled"
        print(f"{model['name']:24} {model['kind']:8} {model['licence']:12} {state:12} {model['source']}")


def _add_export(jobs: Any) -> None:
    parser = _job(jobs, "export", _export, "write a model for others: one transformers directory, or the adapter alone")
    parser.add_argument("--model", default="llasm-tiny", help="llasm-tiny, a checkpoint's directory or a hub id")
    parser.add_argument(
        "--format",
        choices=["merged", "adapter", "llm"],
        default="merged",
        help="merged: checkpoint and bases as one transformers directory; adapter: the small checkpoint without logs; "
        "llm: the LLM alone, for a server that is asked by `llasm serve --engine URL --hear MODEL`",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")


def _export(args: argparse.Namespace) -> None:
    quiet()
    from llasm import checkpoint

    formats = {"merged": checkpoint.merge, "adapter": checkpoint.copy_adapter, "llm": checkpoint.export_llm}
    formats[args.format](args.model, args.output)
    print(args.output)


def _serve(argv: list[str]) -> None:
    try:
        from llasm.serve.settings import load_settings

        settings = load_settings(argv)
        from llasm.serve.server import serve
    except ImportError as error:
        raise LlasmError(f"serve: {error.name} is not installed; pip install 'llasm[serve]'") from error
    quiet()
    serve(settings)


_DATA_HELP = """\
usage: llasm data build [RECIPE] [--input FILE] [--output DIR] [--key value …]   make a spoken data set
       llasm data check PATH                                                     say what is wrong with one, row by row
       llasm data export PATH --format llava|sharegpt|audiofolder|webdataset --output DIR
llasm data build --help lists every setting."""


def _data(argv: list[str]) -> None:
    actions = {"build": _data_build, "check": _data_check, "export": _data_export}
    if argv[:1] in ([], ["--help"], ["-h"]):
        print(_DATA_HELP)
    elif argv[0] not in actions:
        raise LlasmError(f"unknown action {argv[0]!r}: llasm data {'|'.join(actions)}")
    else:
        actions[argv[0]](argv[1:])


def _data_build(argv: list[str]) -> None:
    from llasm.data_gen.recipe import load_recipe

    recipe = load_recipe(argv)
    quiet()
    from llasm.data_gen.build import build

    print(build(recipe))


def _data_check(argv: list[str]) -> None:
    from llasm.data_gen.check import check

    parser = argparse.ArgumentParser(prog="llasm data check", description="Checks a data set row by row.")
    parser.add_argument("path", help="any file, folder or hub id that `llasm data build` reads")
    args = parser.parse_args(argv)
    for so_far, faults in check(args.path):  # noqa: B007  (its last value is the summary)
        for fault in faults:
            print(fault)
    print(
        f"{so_far.rows} rows, {so_far.bad} with faults, {so_far.answered} answered, {so_far.clips} clips, "
        f"{so_far.seconds / 3600:.2f} h"
    )
    if so_far.bad:
        raise LlasmError(f"{args.path}: {so_far.bad} of {so_far.rows} rows have faults")


def _data_export(argv: list[str]) -> None:
    from llasm.data_gen.export import FORMATS, export

    parser = argparse.ArgumentParser(
        prog="llasm data export", description="Writes a spoken data set in another layout."
    )
    parser.add_argument("path", help="a folder that `llasm data build` wrote")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    print(export(args.path, args.format, args.output))


def _train(argv: list[str]) -> None:
    from llasm.options import recipe_names
    from llasm.train.recipe import load_recipe, print_help

    if argv[:1] in (["--help"], ["-h"]):
        print_help()
        return
    if not argv or argv[0].startswith("-"):
        raise LlasmError(f"train what? shipped recipes are {', '.join(recipe_names('train'))}; a YAML file works too")
    recipe = load_recipe(argv[0], argv[1:])
    quiet()
    from llasm.train.run import train

    if output := train(recipe):
        print(output)


_EVAL_HELP = """\
usage: llasm eval --task TASK[,TASK…] --out DIR [--model M] [--data PATH] [--key value …]   ask, score, report
       llasm eval score DIR [--judge_url URL]   score saved answers again, without the model
       llasm eval compare DIR DIR               two models over the same items
       llasm eval report DIR                    write report.md and report.html again
llasm eval run --help lists every setting."""


def _eval(argv: list[str]) -> None:
    actions = {"run": _eval_run, "score": _eval_score, "compare": _eval_compare, "report": _eval_report}
    if argv[:1] in ([], ["--help"], ["-h"]):
        print(_EVAL_HELP)
    elif argv[0] in actions:
        actions[argv[0]](argv[1:])
    elif argv[0].startswith("-"):
        _eval_run(argv)
    else:
        raise LlasmError(f"unknown action {argv[0]!r}: llasm eval [{'|'.join(actions)}]")


def _eval_run(argv: list[str]) -> None:
    from llasm.evals.settings import load_settings

    settings = load_settings(argv)
    quiet()
    from llasm.evals.run import evaluate

    print(evaluate(settings))


def _eval_score(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="llasm eval score", description="Scores saved answers again.")
    parser.add_argument("out", type=Path, metavar="DIR", help="a folder of llasm eval; shards may be joined in events/")
    parser.add_argument("--judge_url", "--judge-url", help="an OpenAI-compatible server that judges answers")
    parser.add_argument("--judge_model", "--judge-model", default="judge", help="the judge's name at that server")
    args = parser.parse_args(argv)
    from llasm.evals.run import rescore

    print(rescore(args.out, args.judge_url, args.judge_model))


def _eval_compare(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="llasm eval compare", description="Compares two runs item by item.")
    parser.add_argument("first", type=Path, metavar="DIR")
    parser.add_argument("second", type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    from llasm.evals.compare import compare

    print(compare(args.first, args.second))


def _eval_report(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="llasm eval report", description="Writes a run's report again.")
    parser.add_argument("out", type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    from llasm.evals.report import report

    print(report(args.out))


# Jobs whose options are the fields of a dataclass in their room; the room parses them.
_OWN_OPTIONS: dict[str, Callable[[list[str]], None]] = {"serve": _serve, "data": _data, "train": _train, "eval": _eval}

if __name__ == "__main__":
    sys.exit(main())
