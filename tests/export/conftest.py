"""The tiny run is exported once for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.export.tiny import Exported, export_tiny


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_tiny(tmp_path_factory.mktemp("export"))
