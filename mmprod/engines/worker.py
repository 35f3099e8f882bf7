"""The process that builds: `python -m mmprod.engines.worker rtx`. One JSON document a line.

It first writes `{"version": ...}` or `{"error": ...}`, then answers each job read from stdin with
`{"result": ...}` or `{"error": ...}`, and ends when stdin does. A builder is native code that may
crash, hang or eat all memory; here it can only take its own process with it (`pool.py` watches).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from mmprod.engines import rtx
from mmprod.engines.job import BuildJob
from mmprod.errors import MmprodError
from mmprod.runners.trt import load_library


def serve(flavour: str, requests: TextIO, answers: TextIO) -> int:
    """Answer every request. Returns the exit code."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        answer({"version": load_library(flavour).__version__})
    except MmprodError as error:
        answer(_as_dict(error))
        return error.exit_code
    for line in requests:
        try:
            answer({"result": rtx.build(BuildJob.parse(json.loads(line))).as_dict()})
        except MmprodError as error:
            answer(_as_dict(error))
    return 0


def _as_dict(error: MmprodError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": error.message, "hint": error.hint}


def main() -> int:
    # Native code writes to stdout as it likes, so the answers get a channel of their own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        return serve(sys.argv[1], sys.stdin, answers)


if __name__ == "__main__":
    raise SystemExit(main())
