"""The picture of the web page in README: docs/img/web.png, drawn by a bundle's own model.

    python -m tools.web_picture BUNDLE [OUT.png]

starts `mmprod serve` on the bundle, asks the page for three pictures of one caption and keeps what
Chromium shows. Needs `apt install chromium` and the extra `dev`.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.serving.browser import open_browser, watch
from tests.serving.process import serving

OUT = Path(__file__).resolve().parent.parent / "docs" / "img" / "web.png"
PROMPT, SEED, COUNT = "a smiling face with red hair and sunglasses, blue clothes", "7", "3"
WIDTH, HEIGHT = 1120, 650
LARGEST = 200_000
"""bytes of the file"""


def main() -> int:
    bundle, out = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else OUT
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(bundle, Path(folder) / "log") as server,
        open_browser() as browser,
        watch(browser, server.port, viewport={"width": WIDTH, "height": HEIGHT}) as watched,
    ):
        page = watched.page
        page.locator("#server[data-state=ready]").wait_for()
        for name, value in (("prompt", PROMPT), ("count", COUNT), ("seed", SEED)):
            page.fill(f"#draw-{name}", value)
        watched.send("draw")
        page.locator("#draw .shown img").nth(int(COUNT) - 1).wait_for()
        out.parent.mkdir(parents=True, exist_ok=True)
        page.mouse.move(0, 0)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        shot.save(out, optimize=True)
    size = out.stat().st_size
    print(f"{out}: {size} bytes")
    return 1 if size > LARGEST else 0


if __name__ == "__main__":
    sys.exit(main())
