"""Keep mmprod/ small: at most 300 lines a file and 40 statements a function.

    python tools/size.py            the ten largest of each
    python tools/size.py --check    only what is too large; exit 1 if anything is

A statement counts wherever it stands inside the function, nested functions included;
a docstring does not.
"""

from __future__ import annotations

import argparse
import ast
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 300
MAX_STATEMENTS = 40


@dataclass(frozen=True)
class Size:
    """One measured thing: where it is, what was counted, and how much is allowed."""

    place: str
    count: int
    limit: int
    unit: str

    def __str__(self) -> str:
        return f"{self.place}: {self.count} {self.unit} (at most {self.limit})"


def count_statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Statements inside `function`, without the `def` itself and without docstrings."""

    def is_docstring(node: ast.stmt) -> bool:
        return (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )

    inside = (n for n in ast.walk(function) if isinstance(n, ast.stmt) and n is not function)
    return sum(not is_docstring(node) for node in inside)


def measure(path: Path, root: Path) -> list[Size]:
    """The sizes of one file and of each function in it. Raises SyntaxError where Python would."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(root).as_posix()
    sizes = [Size(name, len(text.splitlines()), MAX_LINES, "lines")]
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{name}:{node.lineno} {node.name}"
            sizes.append(Size(place, count_statements(node), MAX_STATEMENTS, "statements"))
    return sizes


def measure_tree(root: Path) -> list[Size]:
    """The sizes of all Python files below `root`/mmprod, largest share of its limit first."""
    paths = sorted((root / "mmprod").rglob("*.py"))
    sizes = [size for path in paths for size in measure(path, root)]
    return sorted(sizes, key=lambda size: -size.count / size.limit)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print what is too large and exit 1")
    arguments = parser.parse_args()
    sizes = measure_tree(ROOT)
    if arguments.check:
        shown = [size for size in sizes if size.count > size.limit]
    else:
        files = [size for size in sizes if size.unit == "lines"]
        functions = [size for size in sizes if size.unit == "statements"]
        shown = files[:10] + functions[:10]
    for size in shown:
        print(size)
    return 1 if arguments.check and shown else 0


if __name__ == "__main__":
    sys.exit(main())
