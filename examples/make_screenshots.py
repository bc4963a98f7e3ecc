"""Take the pictures of ``docs/images``: pocket in the browser front end, the first example of three pages.

``python -m examples.make_screenshots`` needs the extras ``demo`` and ``dev`` and a Chromium (CHROMIUM names one).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image

from vlm import DiffusionVLM

OUT = Path(__file__).parents[1] / "docs" / "images"
PAGES = ("Extract", "Read", "Compare")
WIDTH = 1180


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    from app.web.serve import check_installed, warm_up

    check_installed()
    from playwright.sync_api import expect, sync_playwright

    from app.web.build import build_demo, launch_options

    model = DiffusionVLM.from_pretrained()
    warm_up(model)
    demo = build_demo(model)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_options())
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(url)
        for title in PAGES:
            name = title.lower()
            page.get_by_role("tab", name=title, exact=True).click()
            page.click(f"#{name}-example-0")
            expect(page.locator(f"#{name}-status")).to_contain_text("Done", timeout=120_000)
            if title == "Extract":
                page.get_by_role("button", name="Schema").click()  # folded away: the result shall be seen
            page.mouse.move(5, 5)
            page.wait_for_timeout(1500)
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
            shot.save(out / f"{name}.webp", quality=72)
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
