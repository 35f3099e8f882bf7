"""Bundles of a tiny model as the exporter writes them, with weights that a test may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mmprod.bundle import Bundle, create_bundle
from mmprod.export.graph import assemble, parts_of
from mmprod.export.graph_file import save_graph
from mmprod.export.onnx_export import export_part
from mmprod.export.reference import write_reference
from mmprod.graphs.modules import build_module
from mmprod.models.codec import Codec, build_codec
from mmprod.models.fusion import Fusion, build_fusion
from mmprod.parity.run import run_parity
from mmprod.runners.torch import TorchRunner
from tests.export.tiny import CONFIG, DIMS

Change = Callable[[Codec, Fusion], None]


def export_some(
    root: Path,
    graphs: Sequence[str],
    precisions: Sequence[str],
    change: Change | None = None,
    seed: int = 3,
) -> Bundle:
    """These graphs of a fresh model, with stored cases. `change`: of the weights, before."""
    torch.manual_seed(seed)
    codec, fusion = build_codec(CONFIG.codec).eval(), build_fusion(CONFIG.fusion, DIMS).eval()
    with torch.no_grad():
        fusion.image.embed.weight.mul_(4)  # logits of a fresh model are all alike
        if change is not None:
            change(codec, fusion)
    made = create_bundle(root, name="tiny", dims=DIMS, sampler=CONFIG.sampler, provenance={})
    ids = {"codes": DIMS.codebook_size, "tokens": DIMS.vocabulary}
    for name in graphs:
        spec = made.specs[name]
        module = build_module(name, codec=codec, fusion=fusion, dims=DIMS, sampler=CONFIG.sampler)
        parts = {part.name: export_part(part) for part in parts_of(spec, module)}
        for precision in precisions:
            path = root / "onnx" / f"{name}.{precision}.onnx"
            save_graph(assemble(spec, module, parts, precision), path)
            made.add(path, role="onnx", graph=name, precision=precision, meta={"note": "old"})
        path = root / "reference" / f"{name}.npz"
        write_reference(path, spec, TorchRunner(spec, module), {}, ids)
        made.add(path, role="reference", graph=name)
    made.save()
    return made


def overflowing_decoder(folders: pytest.TempPathFactory) -> Path:
    """A bundle of codec_decode that passes parity in fp32, and in fp16 overflows in one
    convolution; made once a session, to be copied.
    """
    root = folders.getbasetemp() / "overflowing" / "bundle"
    if not root.exists():
        run_parity(export_some(root, ("codec_decode",), ("fp32", "fp16"), overflow_in_codec))
    return root


def overflow_in_codec(codec: Codec, fusion: Fusion) -> None:
    """A convolution beyond the range of fp16; the norm behind it takes the factor away again."""
    block = codec.decoder.layers[1]
    block.conv1.weight.mul_(2e5)
    block.conv1.bias.mul_(2e5)


def overflow_in_fusion(codec: Codec, fusion: Fusion) -> None:
    """Values of an attention beyond the range of fp16; its output takes the factor away again."""
    attention = fusion.image.tower[0].attention
    width = attention.out.weight.shape[0]
    attention.qkv.weight[2 * width :].mul_(4e5)
    attention.out.weight.div_(4e5)
