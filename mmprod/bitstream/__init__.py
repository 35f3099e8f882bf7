"""Pictures as files: a documented container, three priors, a range coder. Torch-free.

    written = write_file([Picture(codes, height, width)], codec, prior)   .data: bytes of a file
    pictures = read_file(written.data, codec, prior)                      exactly what was written
    about = describe(written.data)                                        the header, no model

`codec` is a `CodecId`: which codec, how many ids, planes and pixels per cell. A `Prior` turns codes
into payload bytes: `RawPrior(codec)`, `StaticPrior(codec, table)` with the table of `static_table`,
`FusionPrior(codec, runner)` over the graph `code_prior`. The format is specified, so that somebody
could write a decoder from it, in docs/bitstream.md.
"""

from mmprod.bitstream.container import Description, describe
from mmprod.bitstream.file import Written, read_file, write_file
from mmprod.bitstream.fusion_prior import FusionPrior
from mmprod.bitstream.picture import CodecId, Picture
from mmprod.bitstream.priors import Prior, RawPrior, StaticPrior
from mmprod.bitstream.tables import static_table

__all__ = [
    "CodecId",
    "Description",
    "FusionPrior",
    "Picture",
    "Prior",
    "RawPrior",
    "StaticPrior",
    "Written",
    "describe",
    "read_file",
    "static_table",
    "write_file",
]
