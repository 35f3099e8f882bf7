"""A real browser before a server of ours: the Debian package `chromium`, driven by Playwright.

It may reach the server's own address and nothing else.
"""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from mmprod.serving.door import Door
from mmprod.serving.rest import build_routes
from mmprod.serving.service import Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Route

LEFT_BY_REFUSALS = "Failed to load resource"
"""What the browser itself says of each answer that is an error."""
GIVE = """([how, encoded, type, name]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const event = how === "drop"
    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.querySelector("#describe .drop").dispatchEvent(event);
}"""
"""Drops or pastes a file, in base64, on the view that describes pictures."""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium without a window; the test skips where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        # Root has no sandbox of Chromium; the only page it opens is ours.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """The page of a server in a tab of its own, and what went wrong in it."""

    def __init__(self, browser: Browser, port: int, **context: Any) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.errors: list[str] = []
        self.outside: list[str] = []
        self._context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}} | context
        )
        self._context.set_default_timeout(20_000)
        self.page: Page = self._context.new_page()
        self.page.route("**/*", self._only_ours)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._said(message.type, message.text))
        self.page.on("request", self._seen)
        self.open()

    def open(self, address: str = "/") -> None:
        self.page.goto("about:blank")  # so that an address that differs after the # is loaded, too
        self.page.goto(self.origin + address)

    def close(self) -> None:
        self._context.close()

    def wait(self, view: str) -> None:
        """Until the view's request is answered or refused."""
        self.page.locator(f"#{view}[aria-busy=false]").wait_for()

    def send(self, view: str) -> None:
        self.page.click(f"#{view} button.main")
        self.wait(view)

    def said(self, view: str) -> str:
        return self.page.inner_text(f"#{view} .said")

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not text.startswith(LEFT_BY_REFUSALS):
            self.errors.append(text)

    def _seen(self, request: Request) -> None:
        if not request.url.startswith((self.origin, "blob:" + self.origin, "about:")):
            self.outside.append(request.url)

    def _only_ours(self, route: Route) -> None:
        if route.request.url.startswith(self.origin + "/"):
            route.continue_()
        else:
            route.abort()


@contextmanager
def watch(browser: Browser, port: int, **context: Any) -> Iterator[Watched]:
    """Fails in the end if the page had errors or asked for anything elsewhere."""
    watched = Watched(browser, port, **context)
    try:
        yield watched
        assert watched.errors == []
        assert watched.outside == []
    finally:
        watched.close()


@contextmanager
def in_thread(service: Service) -> Iterator[int]:
    """The service behind a socket of this process; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    application = Door(build_routes(service), service)
    config = uvicorn.Config(application, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        service.close()
