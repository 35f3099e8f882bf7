"""The bundle: a folder of graphs, engines and reports that vouches for itself. Torch-free."""

from mmprod.bundle.artefact import ROLES, Artefact
from mmprod.bundle.bundle import Bundle
from mmprod.bundle.files import FORMAT
from mmprod.bundle.open import create_bundle, open_bundle, remove_bundle

__all__ = [
    "FORMAT",
    "ROLES",
    "Artefact",
    "Bundle",
    "create_bundle",
    "open_bundle",
    "remove_bundle",
]
