"""TensorRT engines of a bundle: built, read back, listed. Torch-free; builds run in processes."""

from mmprod.engines.build import BuildEvent, build_engines
from mmprod.engines.flavours import Flavour, available_flavours
from mmprod.engines.pool import Limits
from mmprod.engines.record import EngineRecord

__all__ = ["BuildEvent", "EngineRecord", "Flavour", "Limits", "available_flavours", "build_engines"]
