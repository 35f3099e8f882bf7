"""The only file that imports tritonclient: `config.pbtxt` as a message of Triton's own protocol.

What is written is what the server's own definition of a model configuration can hold: a field that
does not exist, or a value of the wrong type, fails here and not when the server starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mmprod.errors import IntegrityError

TYPES = {
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "float32": "TYPE_FP32",
    "bytes": "TYPE_STRING",
}


def to_text(content: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """A model configuration as protobuf text. content: fields by their protobuf names.

    Raises ValueError, TypeError for a field or value that the protocol does not have.
    """
    message = model_config_pb2.ModelConfig(**content)
    head = "".join(f"# {line}\n" for line in comments)
    text: str = text_format.MessageToString(message)
    return head + text


def parse(text: str) -> Any:
    """The message in a `config.pbtxt`. Raises IntegrityError with line and column."""
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise IntegrityError(
            f"not a Triton model configuration: {error}",
            hint="render it again: mmprod deploy render triton",
        ) from error
