"""The error tree. Every expected failure is one of these; anything else is a bug and keeps its
traceback.

    MmprodError                      exit
    |- ConfigError                   2    usage or configuration: the user can mend the input
    |- EnvironmentMissing            3    a missing extra, device, tool or version
    |- IntegrityError                4    an artefact differs from its manifest or is unreadable
    |- ParityFailed                  5    a compiled graph disagrees with its reference
    |- PrecisionMismatch             5    the precision built is not the one asked for
    |- BudgetMissed                  6    a performance budget was not met
    |- NumericsError                 7    NaN or Inf where a finite number is needed
    `- Preempted                     75   asked to stop; state is saved: start it again

An interrupt from the keyboard exits with 130. Each error carries a `hint`: what to do next, as a
command where possible.
"""

from __future__ import annotations

from typing import ClassVar


class MmprodError(Exception):
    """An expected failure: what went wrong and where (`message`), what to do (`hint`)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MmprodError):
    """The command line or a configuration file asks for something that does not exist or cannot
    work.
    """

    exit_code = 2


class EnvironmentMissing(MmprodError):
    """This machine lacks something the command needs: a package, a device, a program, a version."""

    exit_code = 3


class IntegrityError(MmprodError):
    """A file is missing, unreadable or differs from what its manifest says."""

    exit_code = 4


class ParityFailed(MmprodError):
    """A graph or engine left its limits against the reference."""

    exit_code = 5


class PrecisionMismatch(MmprodError):
    """The precision that was asked for is not the precision that was built."""

    exit_code = 5


class BudgetMissed(MmprodError):
    """A latency, throughput or memory budget given by the user was missed."""

    exit_code = 6


class NumericsError(MmprodError):
    """A loss, gradient or output is NaN or infinite."""

    exit_code = 7


class Preempted(MmprodError):
    """The job was asked to stop, saved its state and can be started again."""

    exit_code = 75
