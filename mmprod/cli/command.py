"""How a command is declared, and the one funnel its errors pass through.

    @command(app, "verify", panel=USE)
    def verify(out: Output, bundle: BundleArg) -> None: ...

Every command gets `--json`, `-v` and `-q`; its function receives the finished `Output` instead.
An expected error becomes `error:` and `hint:` on stderr and its exit code, and so does a file that
the system refuses; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

import typer
from typer.core import TyperGroup

from mmprod.cli.launch import is_rank, record_exit
from mmprod.cli.output import Output
from mmprod.cli.paths import explained
from mmprod.errors import ConfigError, EnvironmentMissing, MmprodError
from mmprod.log import configure_logging, own_rank
from mmprod.training import lifeline

logger = logging.getLogger(__name__)

UsageError: Any = typer.BadParameter.__base__
"""A command line that cannot be parsed. Where this class lives depends on the version of Typer."""

Function = Callable[..., None]

START, MAKE, SHIP, USE = "Start here", "Train", "Ship", "Use"
"""Panels of `mmprod --help`."""

INTERRUPTED = 130

EXTRAS = {
    "torch": "train", "deepspeed": "train", "safetensors": "train", "tensorboard": "train",
    "einops": "train", "datasets": "data", "pyarrow": "data", "python_avatars": "data",
    "resvg_py": "data", "sacrebleu": "data", "tokenizers": "serve", "onnxruntime": "serve",
    "constriction": "serve", "google_crc32c": "serve", "grpc": "serve",
    "orjson": "serve", "prometheus_client": "serve", "starlette": "serve", "uvicorn": "serve",
    "uvloop": "serve", "httptools": "serve", "cryptography": "sign", "onnx": "export",
    "onnxscript": "export", "tensorrt_rtx": "trt", "tritonclient": "deploy", "yaml": "deploy",
    "google": "deploy", "lancedb": "search",
}  # fmt: skip
"""Which extra brings a module; a core installation has none of them."""

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Log more, on stderr.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.")]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Change one setting; repeatable."),
]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `mmprod train`.")]
BundleArg = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder written by `mmprod export`.")
]
SourceArg = Annotated[
    Path, typer.Argument(metavar="RUN|BUNDLE", help="Folder of a training run or of a bundle.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the noise; same seed, same result.")]


def command(
    app: typer.Typer, name: str, *, panel: str | None = None
) -> Callable[[Function], Function]:
    """Register `function(out, ...)` as a command of `app`; the function itself stays as it is."""

    def register(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "out"]
        shared = [
            Parameter(key, Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for key, kind in (("json", JsonFlag), ("verbose", VerboseFlag), ("quiet", QuietFlag))
        ]

        @functools.wraps(function)
        def run(*, json: bool, verbose: bool, quiet: bool, **values: Any) -> None:
            verbosity = -1 if quiet else int(verbose)
            configure_logging(verbosity)
            _through_funnel(function, Output(as_json=json, verbosity=verbosity), values)

        parameters = [_as_written(p.replace(kind=Parameter.KEYWORD_ONLY)) for p in own] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, rich_help_panel=panel)(run)
        return function

    return register


TAG = re.compile(r"(\[[a-zA-Z/@#].*?\])")
"""What Rich takes for markup."""


def _as_written(parameter: Parameter) -> Parameter:
    """The same with a help text whose brackets are shown: Rich would take them for markup."""
    kind, *about = get_args(parameter.annotation) or (parameter.annotation,)
    shown = [copy.copy(one) for one in about]
    for one in shown:
        if getattr(one, "help", None):
            one.help = TAG.sub(r"\\\1", one.help)
    is_annotated = get_origin(parameter.annotation) is Annotated
    return parameter.replace(annotation=Annotated[kind, *shown]) if is_annotated else parameter


class Group(TyperGroup):
    """A group which, as the root, gives a usage error under --json a document too."""

    def make_context(
        self, info_name: Any, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        if parent is not None:
            return super().make_context(info_name, args, parent, **extra)
        words = tuple(args)
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except UsageError as error:
            _usage_document(error, words)
            raise
        context.meta[WORDS] = words
        return context

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if ctx.parent is None:
                _usage_document(error, ctx.meta[WORDS])
            raise


WORDS = "mmprod.words"
"""Where the root's context keeps the command line."""


def _usage_document(error: Any, words: Sequence[str]) -> None:
    """The error as JSON if the command line asks for it. Words for people are Typer's part."""
    options = words[: words.index("--")] if "--" in words else words
    path = error.ctx.command_path if error.ctx else "mmprod"
    refusal = ConfigError(error.format_message(), hint=f"{path} --help")
    Output(as_json="--json" in options).document(refusal)


def group(help_text: str) -> typer.Typer:
    """An empty group of commands."""
    return typer.Typer(
        cls=Group,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def choices(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated option: `"fp32, fp16"` -> `("fp32", "fp16")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def some(text: str, option: str) -> tuple[str, ...]:
    """`choices`, of which there must be one. Raises ConfigError."""
    found = choices(text)
    if not found:
        raise ConfigError(
            f"{option} {text!r} names nothing", hint=f"leave {option} out, or fill it"
        )
    return found


def _through_funnel(function: Function, out: Output, values: dict[str, Any]) -> None:
    try:
        _explained(function, out, values)
    except Exception as error:
        if not is_rank() or isinstance(error, (typer.Exit, typer.Abort, UsageError)):
            raise
        _end_of_rank(error)


def _explained(function: Function, out: Output, values: dict[str, Any]) -> None:
    try:
        function(out, **values)
    except MmprodError as error:
        if not _said_by_rank_0(error):
            out.fail(error)
        _exit(error.exit_code, error.message)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        hint = f"pip install 'mmprod[{extra}]'; `mmprod doctor` shows what else is missing"
        missing = EnvironmentMissing(f"this needs {error.name}, which is not installed", hint=hint)
        out.fail(missing)
        _exit(missing.exit_code)
    except OSError as error:
        refusal = explained(error)
        if refusal is None:
            raise
        logger.debug("refused by the system", exc_info=error)
        if not _said_by_rank_0(refusal):
            out.fail(refusal)
        _exit(refusal.exit_code, refusal.message)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _exit(INTERRUPTED)


SAME_WORDS_S = 2.0
"""How long a rank waits for rank 0 to say what it would say itself."""


def _said_by_rank_0(error: MmprodError) -> bool:
    """Ranks mostly fail together with the same words, of which one copy is enough."""
    if not own_rank():
        return False
    loss = lifeline.loss(SAME_WORDS_S)
    return loss is not None and loss.rank == 0 and loss.said == error.message


def _end_of_rank(error: Exception) -> NoReturn:
    """A bug, whose traceback the interpreter cannot be left to print: gloo may abort or wait in its
    teardown. Or a collective that failed because another rank is gone, which is said already.
    """
    loss = lifeline.loss(lifeline.GRACE_DEAD_S - 1) if isinstance(error, RuntimeError) else None
    if loss is not None:
        logger.debug("%s", loss, exc_info=error)
        _exit(loss.exit_code)
    traceback.print_exception(error)
    _exit(1, f"{type(error).__name__}: {error}")


def _exit(code: int, said: str = "") -> NoReturn:
    """End with `code`. A rank of a group leaves at once: the others may never answer again."""
    if is_rank():
        record_exit(code)
        if importlib.util.find_spec("torch") is not None:
            from mmprod.training.distributed import leave
            from mmprod.training.rendezvous import withdraw

            if not lifeline.held():
                withdraw(code, said)
            leave(code, said)
    raise typer.Exit(code)
