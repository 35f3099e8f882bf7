"""The web page of a server, used in a real browser as a person would."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.serving.asked import ask, decoded, shown
from tests.serving.browser import GIVE, Watched, in_thread, open_browser, watch
from tests.serving.drawn_bundle import make_bundle
from tests.serving.fakes import SETTINGS, limited, png, serve
from tests.serving.process import Served, serving
from tests.serving.reach import barriers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
VIEWS = ("draw", "describe", "invent", "edit", "search", "compress")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`mmprod serve` on a bundle of small graphs."""
    folder = tmp_path_factory.mktemp("web")
    with serving(make_bundle(folder / "bundle"), folder / "log") as served:
        yield served


def draw(watched: Watched, prompt: str, count: int, seed: str) -> None:
    watched.page.fill("#draw-prompt", prompt)
    watched.page.fill("#draw-count", str(count))
    watched.page.fill("#draw-seed", seed)
    watched.send("draw")


def test_a_person_draws_describes_edits_and_compresses(
    browser: Browser, server: Served, tmp_path: Path
) -> None:
    with watch(browser, server.port) as watched:
        page = watched.page
        page.locator("#server[data-state=ready]").wait_for()
        draw(watched, "a red face", 2, "5")
        assert watched.said("draw") == "2 pictures, seed 5."
        wanted = decoded(
            ask(server, "text_to_image", prompt="a red face", seed=5, count=2)["pictures"]
        )
        np.testing.assert_array_equal(shown(watched, "draw"), wanted)
        about = server.about["models"]["text_to_image"]
        answered = page.inner_text("#draw .answer")
        assert about["runner"] in answered and about["precision"] in answered
        for words in ("In the queue", "Computing", "Round trip"):
            assert re.search(rf"{words}\n[\d.,]+ ms", answered)
        link = page.url
        assert "seed=5" in link and "count=2" in link
        watched.open(link.removeprefix(watched.origin))
        watched.page.locator("#draw .shown img").nth(1).wait_for()
        np.testing.assert_array_equal(shown(watched, "draw"), wanted)

        page.click("#draw figure:first-child button:text('Describe')")
        page.fill("#describe-seed", "3")
        watched.send("describe")
        picture = base64.b64decode(
            ask(server, "text_to_image", prompt="a red face", seed=5)["pictures"][0]
        )
        (text,) = ask(server, "image_to_text", picture=picture, seed=3)["text"]
        assert page.inner_text("#describe blockquote").split() == (text or "(no words)").split()
        _invent(watched, server)
        _edit(watched, picture)
        page.click("#tab-search")
        assert page.inner_text("#search").startswith("No index loaded")
        _compress(watched, server, tmp_path)


def _invent(watched: Watched, server: Served) -> None:
    page = watched.page
    page.click("#tab-invent")
    page.fill("#invent-count", "3")
    page.fill("#invent-seed", "4")
    watched.send("invent")
    assert watched.said("invent") == "3 pictures, seed 4."
    wanted = ask(server, "joint", seed=4, count=3)
    np.testing.assert_array_equal(shown(watched, "invent"), decoded(wanted["pictures"]))
    captions = page.locator("#invent .caption").all_inner_texts()
    texts = [(text or "(no words)").split() for text in wanted["texts"]]
    assert [caption.split() for caption in captions] == texts


def _edit(watched: Watched, picture: bytes) -> None:
    """One brush stroke over the upper left quarter: what it does not touch stays."""
    page = watched.page
    page.click("#tab-draw")
    page.click("#draw figure:first-child button:text('Edit')")
    page.locator("#brush").wait_for()
    page.click("#edit button.main")
    assert page.evaluate("document.activeElement.id") == "edit-prompt"  # words, or a brush stroke
    canvas = page.locator("#brush-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.1 * box["height"], steps=4)
    page.mouse.up()
    assert page.inner_text("#brush-state") == "A part is brushed."
    page.fill("#edit-count", "2")
    page.fill("#edit-prompt", "a blue face")
    watched.send("edit")
    assert watched.said("edit").startswith("2 pictures, 2 of 16 places drawn anew, seed ")
    assert len(shown(watched, "edit")) == 2

    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", " "):
        page.keyboard.press(key)
    page.click("#brush-undo")
    assert page.inner_text("#brush-state") == "A part is brushed."
    canvas.focus()
    page.keyboard.press("Backspace")
    assert page.inner_text("#brush-state") == "Nothing is brushed."
    assert page.locator("#brush-undo").is_disabled()
    watched.send("edit")
    assert "6 of 16 places" in watched.said("edit")  # 40 % of 16, by words


def _compress(watched: Watched, server: Served, folder: Path) -> None:
    page = watched.page
    page.click("#tab-compress")
    watched.page.click("#compress button.main")
    assert page.inner_text("#compress .picked") == "Give a picture first."
    content = png(37, 50)
    page.set_input_files(
        "#compress .pick input", {"name": "a.png", "mimeType": "image/png", "buffer": content}
    )
    page.locator("#compress .pick img").wait_for()
    watched.send("compress")
    answer = ask(server, "compress", picture=content)
    file = base64.b64decode(answer["file"][0])
    rate, quality = answer["bits_per_pixel"][0], answer["psnr"][0]
    said = watched.said("compress")
    assert said.startswith(f"{len(file)} bytes, {rate:.3f} bits per pixel, {quality:.1f} dB;")
    with page.expect_download() as caught:
        page.click("#compress a[download]")
    caught.value.save_as(folder / "a.mmc")
    assert caught.value.suggested_filename == "a.mmc"
    assert (folder / "a.mmc").read_bytes() == file
    page.focus("#compress-size")
    page.keyboard.press("Home")
    page.locator("#compress tbody tr").nth(1).wait_for()
    watched.wait("compress")
    assert int(watched.said("compress").split()[0]) < len(file)
    page.set_input_files("#open-file", folder / "a.mmc")
    page.locator("#compress .gallery img").wait_for()
    assert watched.said("compress") == f"1 picture in {len(file)} bytes."
    wanted = decoded(ask(server, "decompress", file=file)["pictures"])
    np.testing.assert_array_equal(shown(watched, "compress"), wanted)


@pytest.fixture(scope="module")
def fake(browser: Browser) -> Iterator[int]:
    """The port of a server of fakes, with an index."""
    with in_thread(serve()) as port:
        yield port


def test_search_by_words_and_by_a_picture(browser: Browser, fake: int) -> None:
    with watch(browser, fake) as watched:
        page = watched.page
        page.click("#tab-search")
        watched.page.click("#search button.main")
        assert page.inner_text("#search .picked") == "Give a picture first."
        page.fill("#search-text", "a red face")
        page.fill("#search-count", "2")
        watched.send("search")
        assert watched.said("search") == "2 hits."
        assert page.locator("#search .hit").all_inner_texts() == [
            "key 0 fits 1.000",
            "key 1 fits 0.900",
        ]
        assert [image.shape for image in shown(watched, "search")] == [(20, 20, 3)] * 2
        page.click("#search figure:first-child button:text('Find alike')")
        assert page.input_value("#search-text") == ""
        page.fill("#search-count", "9")
        watched.send("search")
        assert watched.said("search") == "3 hits."


def test_pictures_are_dropped_pasted_and_made_fit(browser: Browser, fake: int) -> None:
    large = base64.b64encode(png(2000, 2200, "jpeg")).decode()
    small = base64.b64encode(png(20, 30)).decode()
    bitmap = base64.b64encode(png(20, 30, "bmp")).decode()
    with watch(browser, fake) as watched:
        page = watched.page
        page.click("#tab-describe")
        for how, content, kind, said in (
            ("drop", small, "image/png", "30 x 20, "),
            ("paste", bitmap, "image/bmp", "made a PNG"),
            ("drop", large, "image/jpeg", "scaled down from 2200 x 2000"),
        ):
            page.evaluate(GIVE, [how, content, kind, "some.file"])
            page.locator("#describe .picked", has_text=said).wait_for()
            watched.send("describe")
            assert page.inner_text("#describe blockquote").startswith("tokens ")
        page.evaluate(GIVE, ["drop", "aGVsbG8=", "text/plain", "hello.txt"])
        page.locator("#describe .picked", has_text="hello.txt is no picture").wait_for()


def test_a_key_is_asked_for_and_not_kept(browser: Browser) -> None:
    with in_thread(serve(replace(SETTINGS, key="s3cret"))) as port, watch(browser, port) as watched:
        page = watched.page
        for key in ("wrong", "s3cret"):
            page.locator("#key-form").wait_for()
            page.fill("#key", key)
            page.click("#key-form button")
        page.locator("#draw-facts:not(:empty)").wait_for()
        draw(watched, "anything", 1, "")
        assert watched.said("draw").startswith("1 picture, seed ")
        assert not page.is_visible("#key-form")
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert page.evaluate("document.cookie") == "" and "s3cret" not in page.url
        watched.open()
        page.locator("#key-form").wait_for()


def test_refusals_are_told_with_what_to_do(browser: Browser) -> None:
    service = serve(limited(text_characters=5))
    with in_thread(service) as port, watch(browser, port) as watched:
        page = watched.page
        draw(watched, "too long a text", 1, "")
        assert watched.said("draw") == "Prompt has 15 characters, at most 5."
        page.route("**/infer", lambda route: route.fulfill(
            status=429, json={"error": "64 requests wait already"},
            headers={"Retry-After": "1"},
        ))  # fmt: skip
        draw(watched, "short", 1, "")
        assert "64 requests wait already.\n" in watched.said("draw")
        again = page.locator("#draw .problem button")
        assert again.inner_text() == "Try again in 1 s" and again.is_disabled()
        page.unroute("**/infer")
        again.click()  # waits until it can be pressed
        page.locator("#draw .shown img").wait_for()
        assert page.locator("#draw .problem").count() == 0
        page.route("**/infer", lambda route: route.abort())
        watched.send("draw")
        assert watched.said("draw").startswith("The server cannot be reached.")
        page.unroute("**/infer")
        page.route("**/infer", lambda route: None)  # never answered
        page.click("#draw button.main")
        page.click("#draw button.stop")
        watched.wait("draw")
        assert watched.said("draw") == "Stopped."
        service.draining = True
        watched.open()
        page.locator("#server[data-state=draining]").wait_for()
        assert "stopping" in page.inner_text("#server")


def test_bytes_are_written_and_read_as_the_protocol_says(browser: Browser, fake: int) -> None:
    script = """async () => {
      const p = await import("/web/protocol.js");
      const inputs = [p.text("a", "é!"), p.int32("b", -2), p.int64("c", "9007199254740993"),
                      p.fp32("d", 0.5)];
      const { body, jsonLength } = p.encode(inputs);
      const sent = [...new Uint8Array(await body.slice(jsonLength).arrayBuffer())];
      const head = new TextEncoder().encode(JSON.stringify({ id: "x", parameters: {}, outputs: [
        { name: "s", datatype: "BYTES", shape: [2], parameters: { binary_data_size: 11 } },
        { name: "f", datatype: "FP32", shape: [2], parameters: { binary_data_size: 8 } } ] }));
      const tail = [1, 0, 0, 0, 65, 2, 0, 0, 0, 66, 67, 0, 0, 128, 63, 0, 0, 0, 192];
      const whole = new Uint8Array([...head, ...tail]);
      const read = p.decode(whole.buffer, String(head.length));
      return { sent, names: JSON.parse(await body.slice(0, jsonLength).text()).inputs,
               s: read.outputs.s.map((value) => [...value]), f: read.outputs.f };
    }"""
    with watch(browser, fake) as watched:
        found = watched.page.evaluate(script)
    packed = (
        (3).to_bytes(4, "little") + "é!".encode() + np.array([-2], "<i4").tobytes()
        + np.array([9007199254740993], "<i8").tobytes() + np.array([0.5], "<f4").tobytes()
    )  # fmt: skip
    assert bytes(found["sent"]) == packed
    assert [entry["parameters"]["binary_data_size"] for entry in found["names"]] == [7, 4, 8, 4]
    assert found["s"] == [[65], [66, 67]] and found["f"] == [1.0, -2.0]


@pytest.mark.parametrize(("theme", "width"), [("light", 360), ("dark", 1280)])
def test_nothing_keeps_people_out(browser: Browser, fake: int, theme: Any, width: int) -> None:
    size = {"width": width, "height": 800}
    with watch(
        browser, fake, color_scheme=theme, viewport=size, reduced_motion="reduce"
    ) as watched:
        page = watched.page
        page.locator("#draw-facts:not(:empty)").wait_for()
        draw(watched, "anything", 2, "1")
        page.focus("#tab-draw")
        for view in VIEWS:
            assert page.locator('[role="tab"][aria-selected="true"]').count() == 1
            assert page.is_visible(f"#{view}")
            assert page.evaluate("document.activeElement.id") == f"tab-{view}"
            assert barriers(page) == []
            page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "tab-draw"
        page.route("**/infer", lambda route: route.fulfill(status=503, json={"error": "stops"}))
        watched.send("draw")
        assert barriers(page) == []
