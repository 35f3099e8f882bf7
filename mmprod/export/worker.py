"""A process that exports parts: `python -m mmprod.export.worker`, started by `workers.py`.

Reads a pickled list of Parts from stdin, then one index at a time; answers each with a serialized
graph or the exception. Both ends are this package on one machine; nothing else is ever read.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback

from mmprod.export.onnx_export import Part, export_part


def main() -> None:
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever a library prints must not get between the answers
        parts: list[Part] = pickle.load(sys.stdin.buffer)
        while True:
            try:
                index: int = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(_answer(parts[index]), answers)
            answers.flush()


def _answer(part: Part) -> bytes | Exception:
    """The serialized graph, or what went wrong, with its traceback in words."""
    try:
        data: bytes = export_part(part).SerializeToString()
    except Exception as error:  # noqa: BLE001 - raised again in the process that asked
        error.add_note(f"in the export of {part.name}, in another process:")
        error.add_note(traceback.format_exc())
        return _picklable(error)
    return data


def _picklable(error: Exception) -> Exception:
    """The exception itself where it survives pickling, else a RuntimeError that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any class of any library may refuse
        return RuntimeError(f"{type(error).__name__}: {error}\n" + "\n".join(error.__notes__))
    return error


if __name__ == "__main__":
    main()
