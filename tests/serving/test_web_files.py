"""The files of the web page: all that they name is there, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmprod.serving.rest import PAGE_POLICY
from tests.serving.fakes import get, serve

FOLDER = Path(__file__).resolve().parents[2] / "mmprod" / "serving" / "web"
FILES = sorted(FOLDER.iterdir())
XML_NAME = "http://www.w3.org/2000/svg"
"""A name, not an address: nothing is asked of it."""


def test_every_file_that_is_named_is_there_and_every_file_is_named() -> None:
    named = {"index.html"}
    for path in FILES:
        named |= set(re.findall(r"/web/([\w.-]+)", path.read_text(encoding="utf-8")))
    assert named == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_short_and_names_no_other_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert not re.search(r"https?://|//[\w-]+\.\w|@import|:\s*url\(", text.replace(XML_NAME, ""))
    assert not re.search(r"\beval\(|new Function|innerHTML|document\.write|localStorage", text)


def test_markup_has_no_code_or_style_of_its_own() -> None:
    """The policy would keep it from running."""
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>(.*?)</script>", html) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=", html)


def test_the_policy_is_strict_and_sent_with_every_file() -> None:
    assert "unsafe" not in PAGE_POLICY and "*" not in PAGE_POLICY and "http" not in PAGE_POLICY
    assert PAGE_POLICY.startswith("default-src 'none'")
    service = serve()
    kinds = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg+xml"}
    for path in FILES:
        got = get(service, "/" if path.name == "index.html" else f"/web/{path.name}")
        assert got.status == 200 and got.body == path.read_bytes()
        assert got.headers["content-security-policy"] == PAGE_POLICY
        assert kinds[path.suffix] in got.headers["content-type"]
    for name in ("nothing.js", "..", "%2e%2e%2frest.py", ".."):
        assert get(service, f"/web/{name}").status == 404
    service.close()
