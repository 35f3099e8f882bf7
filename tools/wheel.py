"""Check a built wheel: every file of configs/ and of the web page, py.typed, the console script.

python tools/wheel.py dist/mmprod-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find_missing(wheel: Path) -> list[str]:
    """Names that should be in the wheel and are not, sorted."""
    configs = ROOT / "configs"
    wanted = {
        f"mmprod/configs/{path.relative_to(configs).as_posix()}"
        for path in configs.rglob("*")
        if path.is_file()
    }
    if not wanted:
        return ["mmprod/configs/: configs/ is empty in this checkout"]
    page = ROOT / "mmprod" / "serving" / "web"
    wanted |= {path.relative_to(ROOT).as_posix() for path in page.iterdir()}
    wanted |= {"mmprod/__init__.py", "mmprod/py.typed", "mmprod/serving/web/index.html"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        declared = any("mmprod = mmprod.cli.main:main" in archive.read(n).decode() for n in scripts)
    missing = sorted(wanted - names)
    return missing if declared else [*missing, "console script mmprod"]


def main() -> int:
    wheel = Path(sys.argv[1])
    missing = find_missing(wheel)
    for name in missing:
        print(f"{wheel.name}: missing {name}", file=sys.stderr)
    if not missing:
        print(f"{wheel.name}: complete")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
