"""Image codecs and masked image-text models, from training data to checked TensorRT engines.

Importing this package does nothing else: every part is imported from its own module, and the
heavy libraries only by the files that need them. Only the names in `__all__` are promised.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
