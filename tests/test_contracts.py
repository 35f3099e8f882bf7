"""The rules of the repository: layers, sizes, import cost, public surface, layout, documents."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mmprod
from tools import imports, size

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = frozenset(
    {"pyproject.toml", "README.md", "mmprod", "configs", "deploy", "tests", "tools", "docs"}
    | {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"}
    | {".ci", ".gitignore", ".pre-commit-config.yaml"}
)
EXTRAS = frozenset(
    {"train", "export", "trt", "serve", "search", "data", "dev", "bench", "all", "sign"}
    | {"wandb", "mlflow", "deploy", "runtime"}
)
# Modules that must import, by themselves and through others, without torch.
TORCH_FREE = (
    *("errors", "log", "manifest", "config", "bitstream", "bundle", "engines", "parity", "report"),
    *("graphs.spec", "graphs.catalog", "graphs.runner", "runners.ort", "cli.main", "serving"),
    *("deploying", "search"),
)


def repository_files() -> list[Path]:
    """Files that git tracks or would track. Skips the test where this is no git checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / name for name in listing.split("\0") if name)
    return [path for path in paths if path.is_file()]


def modules_of(name: str) -> list[str]:
    """`mmprod.NAME` and, if it is a package, every module below it."""
    base = ROOT / "mmprod" / Path(*name.split("."))
    if base.with_suffix(".py").is_file():
        return [f"mmprod.{name}"]
    files = sorted(base.rglob("*.py"))
    dotted = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files)
    return [module.removesuffix(".__init__") for module in dotted]


def test_layers_hold() -> None:
    # In a process of its own: the linter configures logging and switches off the loggers it finds.
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
    ]
    done = subprocess.run(
        [*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_package_is_seen_by_the_layer_check() -> None:
    # import-linter does not look into folders without __init__.py.
    folders = {path.parent for path in (ROOT / "mmprod").rglob("*.py")}
    unseen = sorted(str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file())
    assert not unseen, f"no __init__.py in {unseen}"


def test_files_and_functions_are_small() -> None:
    too_large = [str(s) for s in size.measure_tree(ROOT) if s.count > s.limit]
    assert not too_large, "\n".join(too_large)


def test_size_check_sees_what_is_too_large(tmp_path: Path) -> None:
    module = tmp_path / "mmprod" / "long.py"
    module.parent.mkdir()
    body = '    """Not a statement."""\n' + "    x = 1\n" * (size.MAX_STATEMENTS + 1)
    module.write_text("def f() -> None:\n" + body + "\n" * size.MAX_LINES)
    found = {s.unit: s.count for s in size.measure_tree(tmp_path) if s.count > s.limit}
    assert found == {"lines": 343, "statements": 41}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not imports.imported_packages("-c", "import mmprod") & (imports.HEAVY | {"numpy"})


def test_import_log_sees_a_heavy_library() -> None:
    assert "torch" in imports.imported_packages("-c", "import torch.version") & imports.HEAVY


def test_help_imports_nothing_heavy() -> None:
    assert not imports.imported_packages(*imports.HELP) & imports.HEAVY


@pytest.mark.parametrize("name", TORCH_FREE)
def test_torch_free_rows_import_without_torch(name: str) -> None:
    modules = modules_of(name)
    assert modules, f"mmprod.{name} does not exist"
    program = f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]"
    check = "assert 'torch' not in sys.modules, 'torch was imported'"
    command = [sys.executable, "-c", f"{program}; {check}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_surface_is_small_and_sorted() -> None:
    assert mmprod.__all__ == sorted(mmprod.__all__)
    assert len(mmprod.__all__) <= 5
    assert all(hasattr(mmprod, name) for name in mmprod.__all__)


def test_version_and_extras_agree_with_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert mmprod.__version__ == project["version"]
    assert set(project["optional-dependencies"]) == EXTRAS
    assert f"## [{mmprod.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_are_exact_and_without_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    bad = [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin)]
    assert pins and not bad


def test_changelog_names_the_versions_that_are_pinned() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    table = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    names = {"PyTorch": "torch", "DeepSpeed": "deepspeed", "ONNX": "onnx"}
    names |= {"onnxscript": "onnxscript", "ONNX Runtime": "onnxruntime"}
    names |= {"TensorRT for RTX": "tensorrt_rtx_cu13"}
    for title, package in names.items():
        assert re.search(rf"^\| {title} \| {re.escape(pins[package])}[ |]", table, re.M), title


def test_top_level_is_what_the_layout_says() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in repository_files()}
    assert found <= TOP_LEVEL, f"new at the top level: {sorted(found - TOP_LEVEL)}"


def test_no_file_names_a_machine_or_a_registry() -> None:
    # Written in parts, so that this file does not match itself.
    places = ["/wor" + "k/", "/roo" + "t/", "/opt/py" + "pi", r"/home/[a-z]+" + "/"]
    hosts = [
        "pypi" + r"\.org",
        "pythonhosted" + r"\.org",
        "registry" + r"\.npmjs",
        "npmjs" + r"\.org",
    ]
    hosts += [
        "download" + r"\.pytorch\.org",
        "index" + "-url *[=:]? *http",
        "find" + "-links *[=:]? */",
    ]
    pattern = re.compile("|".join([rf"(?<![\w.]){place}" for place in places] + hosts))
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in repository_files()
        if path.suffix not in {".png", ".npz", ".safetensors", ".onnx", ".ico"}
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


def test_decisions_fit_on_a_page() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert decisions
    numbers = [path.name[:4] for path in decisions]
    assert numbers == [f"{n:04d}" for n in range(1, len(decisions) + 1)]
    for path in decisions:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, f"{path.name} is longer than 40 lines"
        for heading in ("## Context", "## Decision", "## Consequences"):
            assert heading in text, f"{path.name} lacks {heading}"


def test_readme_fits_in_two_hundred_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
