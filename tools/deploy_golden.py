"""The rendered files under deploy/: what `mmprod deploy render` makes of one made-up bundle.

`python tools/deploy_golden.py` writes them anew; say in the commit why they changed. The bundle is
a description, with the sizes of the demo's: its files hold their own names, so their hashes never
change. Files that are copied from a bundle or from the package are left out of the tree.
tests/deploying/test_golden.py renders the same and puts all of it before the validators.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.deploying.facts import EngineFile, Facts, GraphFile
from mmprod.deploying.files import Files
from mmprod.deploying.options import Images, Options, Serving
from mmprod.deploying.render import RENDERERS, render
from mmprod.graphs.catalog import build_catalog
from mmprod.manifest import sha256_bytes, write_text

GOLDEN = Path(__file__).parents[1] / "deploy"
DIMS = Dims(
    image_size=64, grid=8, codebook_size=1024, text_length=24, vocabulary=384, embedding=128
)
SPECS = build_catalog(DIMS, SamplerConfig())
GRAPH_BYTES = 10_000_000
TENSORRT = "11.4.0.106"
ENGINES = (("rtx", "1.7.1.116", "sm89"), ("tensorrt", TENSORRT, "sm90"))


def content_of(path: str) -> bytes:
    """What a file of the made-up bundle holds."""
    return path.encode()


def facts() -> Facts:
    """The bundle: every graph in fp32 and fp16, and engines in fp16 for an L4 and for an H100."""
    graphs = [
        GraphFile(name, kind, _hashed(f"onnx/{name}.{kind}.onnx"), GRAPH_BYTES, "pass")
        for name in SPECS
        for kind in ("fp32", "fp16")
    ]
    engines = [
        _engine(name, flavour, version, target)
        for flavour, version, target in ENGINES
        for name in SPECS
    ]
    return Facts(
        name="tiny",
        digest=sha256_bytes(b"bundle.json"),
        signed=True,
        specs=SPECS,
        graphs=tuple(graphs),
        engines=tuple(engines),
        tokenizer=("tokenizer.json", sha256_bytes(content_of("tokenizer.json"))),
    )


def variants() -> dict[str, tuple[Facts, Options, tuple[str, ...]]]:
    """By folder below deploy/: the bundle, the options, and what is rendered."""
    whole = facts()
    l4 = Serving(precision="fp16", gpu="l4")
    h100 = Serving(precision="fp16", gpu="h100", backend="tensorrt")
    orin = Serving(precision="fp16", gpu="jetson-orin", bind="0.0.0.0")
    server = tuple(kind for kind in RENDERERS if kind not in ("triton", "slurm"))
    return {
        "cpu": (whole, Options(), tuple(RENDERERS)),
        "gpu": (whole, Options(serving=l4), server),
        "triton-tensorrt": (
            whole,
            Options(serving=h100, images=Images(triton_tensorrt="11.4.0")),
            ("triton",),
        ),
        "jetson": (replace(whole, engines=()), Options(serving=orin), ("docker", "systemd")),
    }


def rendered() -> dict[str, Files]:
    """All files of all variants."""
    return {name: render(*given) for name, given in variants().items()}


def golden() -> dict[str, str]:
    """The text that is kept in the tree, by path below deploy/."""
    return {
        f"{variant}/{name}": content
        for variant, files in rendered().items()
        for name, content in files.items()
        if isinstance(content, str) and not name.endswith("/model.py")
    }


def write_bundle(root: Path) -> None:
    """The files of the made-up bundle that a renderer may copy."""
    held = facts()
    paths = [path for graph in held.graphs for path in graph.files]
    paths += [engine.path for engine in held.engines] + ["tokenizer.json"]
    for path in paths:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content_of(path))


def _hashed(path: str) -> dict[str, str]:
    return {path: sha256_bytes(content_of(path))}


def _engine(name: str, flavour: str, version: str, target: str) -> EngineFile:
    path = f"engines/{flavour}-{target}/{name}.fp16.plan"
    digest = sha256_bytes(content_of(path))
    return EngineFile(name, "fp16", flavour, version, target, path, digest, GRAPH_BYTES, "pass")


def main() -> int:
    """Write the golden files."""
    for variant in variants():
        shutil.rmtree(GOLDEN / variant, ignore_errors=True)
    found = golden()
    for name, text in found.items():
        write_text(GOLDEN / name, text)
    sys.stdout.write(f"{len(found)} files below {GOLDEN.name}/\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
