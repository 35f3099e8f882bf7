"""The light modules stay light."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_vocabulary_and_the_order_loads_no_heavy_library() -> None:
    code = (
        "import sys, mmprod.data, mmprod.data.attributes, mmprod.data.order\n"
        "heavy = {'torch', 'datasets', 'tokenizers', 'pyarrow', 'python_avatars', 'resvg_py'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
