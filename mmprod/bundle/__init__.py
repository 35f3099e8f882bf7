"""The bundle: a folder of graphs, engines and reports that vouches for itself. Torch-free."""

from mmprod.bundle.artefact import ROLES, Artefact
from mmprod.bundle.bundle import Bundle
from mmprod.bundle.files import FORMAT
from mmprod.bundle.open import create_bundle, open_bundle
from mmprod.bundle.place import Place

__all__ = [
    "FORMAT",
    "ROLES",
    "Artefact",
    "Bundle",
    "Place",
    "create_bundle",
    "open_bundle",
]
