"""Why a request is not answered, in words that may leave the machine.

What a client sees is always a `Refused`: its text names what was wrong with the request and never a
path, a version or the text of a library. Anything else that goes wrong becomes `INTERNAL`.
"""

from __future__ import annotations

from http import HTTPStatus

from mmprod.errors import MmprodError


class Refused(MmprodError):
    """A request that gets no answer. `retry_after_s`: when another try makes sense, 0 for never."""

    exit_code = 2

    def __init__(self, status: HTTPStatus, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


INTERNAL = "the server could not answer; its log tells why, under this request's id"


def bad(message: str) -> Refused:
    """The request itself is wrong: 400."""
    return Refused(HTTPStatus.BAD_REQUEST, message)


def unknown(message: str) -> Refused:
    """There is nothing of that name: 404."""
    return Refused(HTTPStatus.NOT_FOUND, message)


def too_large(message: str) -> Refused:
    """More than a limit allows: 413."""
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def busy(message: str, retry_after_s: int = 1) -> Refused:
    """A queue is full: 429."""
    return Refused(HTTPStatus.TOO_MANY_REQUESTS, message, retry_after_s)


def unavailable(message: str, retry_after_s: int = 1) -> Refused:
    """The server starts, stops or has all the requests it takes at once: 503."""
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after_s)
