"""Every error leaves by one door: words on stderr, its exit code, JSON when asked for."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from typing import Annotated

import pytest
import typer

from mmprod import errors
from mmprod.cli.command import command, group
from mmprod.cli.output import Output, Text

EXPECTED = {
    errors.ConfigError: 2,
    errors.EnvironmentMissing: 3,
    errors.IntegrityError: 4,
    errors.ParityFailed: 5,
    errors.PrecisionMismatch: 5,
    errors.BudgetMissed: 6,
    errors.NumericsError: 7,
    errors.Preempted: 75,
    errors.Interrupted: 130,
}


def app_that(action: Callable[[Output], None]) -> typer.Typer:
    app = group("test")

    @command(app, "act")
    def act(out: Output) -> None:
        action(out)

    @command(app, "other")
    def other(out: Output, number: int = 3) -> None:
        out.result({"number": number}, Text(f"number {number}"))

    return app


def code_of(app: typer.Typer, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        app(args=list(arguments), prog_name="test")
    return int(caught.value.code or 0)


def raising(error: BaseException) -> Callable[[Output], None]:
    def action(out: Output) -> None:
        raise error

    return action


@pytest.mark.parametrize(("kind", "code"), EXPECTED.items())
def test_expected_errors_have_words_and_a_code(
    kind: type[errors.MmprodError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    app = app_that(raising(kind("it broke", hint="mend it")))
    assert code_of(app, "act") == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: it broke\nhint: mend it\n"


def test_every_error_class_is_expected_here() -> None:
    found = {c for c in vars(errors).values() if isinstance(c, type)}
    found = {c for c in found if issubclass(c, errors.MmprodError) and c is not errors.MmprodError}
    assert found == set(EXPECTED)


def test_json_has_one_document_also_for_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    app = app_that(raising(errors.IntegrityError("bad file", hint="copy it again")))
    assert code_of(app, "act", "--json") == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {
            "type": "IntegrityError",
            "message": "bad file",
            "hint": "copy it again",
            "exit_code": 4,
        }
    }
    assert "error: bad file" in captured.err


def test_error_after_a_result_adds_no_second_document(capsys: pytest.CaptureFixture[str]) -> None:
    def action(out: Output) -> None:
        out.result({"ok": False})
        raise errors.ParityFailed("worse than allowed")

    assert code_of(app_that(action), "act", "--json") == 5
    assert json.loads(capsys.readouterr().out) == {"ok": False}


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        app_that(raising(ZeroDivisionError("a bug")))(args=["act"], prog_name="test")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, 2), (errno.EISDIR, 2), (errno.EEXIST, 2), (errno.ENOTDIR, 2),
        (errno.EACCES, 3), (errno.EROFS, 3), (errno.ENOSPC, 3),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_said_in_words(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error = OSError(number, os.strerror(number), "/some/where.png")
    assert code_of(app_that(raising(error)), "act", "--json") == code
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["exit_code"] == code
    assert f"error: /some/where.png: {os.strerror(number)}\nhint: " in captured.err


def test_full_disk_without_a_name_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert code_of(app_that(raising(error)), "act") == 3
    assert "make room" in capsys.readouterr().err


def test_a_refusal_that_is_not_about_files_is_a_bug() -> None:
    with pytest.raises(ConnectionResetError):
        app_that(raising(ConnectionResetError(errno.ECONNRESET, "reset")))(
            args=["act"], prog_name="test"
        )


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(app_that(raising(KeyboardInterrupt())), "act") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError("No module named 'onnxruntime.capi'", name="onnxruntime.capi")
    assert code_of(app_that(raising(error)), "act") == 3
    assert "pip install 'mmprod[serve]'" in capsys.readouterr().err


def test_missing_module_that_no_extra_brings_is_a_bug() -> None:
    error = ModuleNotFoundError("No module named 'mmprod.nowhere'", name="mmprod.nowhere")
    with pytest.raises(ModuleNotFoundError):
        app_that(raising(error))(args=["act"], prog_name="test")


def test_other_ranks_say_it_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert code_of(app_that(raising(errors.ConfigError("no", hint="yes"))), "act", "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"[rank 3 {socket.gethostname()}] error: no\n"


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["other", "--nope"], ["other", "--number", "x"]]
)
def test_usage_errors_are_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(app_that(raising(ValueError())), *arguments) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["other", "--json", "--nope"], "--nope"),
        (["nothing", "--json"], "nothing"),
        (["--json"], "--json"),
        (["other", "--number", "x", "--json"], "--number"),
        (["inner", "need", "--json"], "THING"),
    ],
)
def test_usage_errors_under_json_are_one_document(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app, inner = app_that(raising(ValueError())), group("inner")

    @command(inner, "need")
    def need(out: Output, thing: Annotated[str, typer.Argument(metavar="THING")]) -> None:
        raise ValueError

    app.add_typer(inner, name="inner")
    assert code_of(app, *arguments) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert words in error["message"]
    assert (error["exit_code"], error["hint"].endswith("--help")) == (2, True)
    assert captured.err


def test_a_caption_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(app_that(raising(ValueError())), "other", "--", "--json") == 2
    assert capsys.readouterr().out == ""


def test_options_of_the_command_and_shared_ones_go_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = app_that(raising(ValueError()))
    assert code_of(app, "other", "--number", "5", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out) == {"number": 5}
