"""Which codec this is, as one hash. A compressed file names its codec by it.

The hash covers what turns codes into pixels, and the static prior: every tensor of decoder and
quantizer (codes, rates), the parts of the architecture that leave no trace in a tensor, and the
sizes of the graphs. The encoder is left out: it decides how well a picture is coded, not what the
codes mean. It is the hash of the weights, not of a graph: the graphs of a bundle in any precision
belong to the same codec.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from mmprod.config.schema import CodecConfig, Dims
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.models.codec import Codec

PARTS = ("decoder.", "quantizer.")
RATE = "quantizer.rate"
ARCHITECTURE = ("patch", "quantizer", "book", "books", "levels")
"""settings of the codec that change the meaning of codes or weights and not the tensors' shapes"""


def codec_facts(codec: Codec, cfg: CodecConfig, dims: Dims) -> CodecFacts:
    """Hash and rates of a trained codec, as `models.load_models` gives it."""
    about = {
        "architecture": cfg.model_dump(mode="json", include=set(ARCHITECTURE)),
        "image_size": dims.image_size,
        "grid": dims.grid,
        "codebook_size": dims.codebook_size,
        "planes": dims.planes,
    }
    tensors = {name: value.cpu().numpy() for name, value in codec.state_dict().items()}
    sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        if name.startswith(PARTS):
            sha.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
            sha.update(np.ascontiguousarray(tensor).tobytes())
    return CodecFacts(sha.hexdigest(), np.array(tensors[RATE], np.float32))
