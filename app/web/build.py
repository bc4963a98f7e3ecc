"""The whole front end from a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.web.controls import EXAMPLES
from app.web.pages import Page, all_pages

HERE = Path(__file__).parent
FONT = ["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"]  # of the visitor's machine: nothing is fetched
MONO = ["ui-monospace", "DejaVu Sans Mono", "Consolas", "monospace"]
WAITING = 32  # requests that may wait for the model
UPLOAD = "32mb"


def build_demo(model: Any, pages: Sequence[Page] | None = None, *, local: bool = True) -> gr.Blocks:
    """The app.

    Args:
        model: a :class:`vlm.DiffusionVLM`, or anything that has its methods.
        pages: None for all that fit the model.
        local: whether only this machine can reach the server; pages that must not be open to others need it.
    """
    chosen = [page for page in (all_pages() if pages is None else pages) if page.fits(model) and (local or not page.local_only)]
    info = model.info()
    with gr.Blocks(title="diffusion-vlm", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        size = info.get("parameters", {}).get("total", 0) / 1e6
        gr.Markdown(f"# diffusion-vlm\nModel **{info['name']}**, {size:.1f} million parameters. It can be wrong: look at the confidence.")
        with gr.Tabs():
            for page in chosen:
                with gr.Tab(page.title, id=page.title.lower()):
                    page.build(model)
    demo.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)
    return demo


def launch_options() -> dict[str, Any]:
    """How the app is served, wherever it is: look, limits, and nothing from or to other machines."""
    theme = gr.themes.Default(font=FONT, font_mono=MONO)
    return {
        "theme": theme, "css_paths": [HERE / "style.css"], "footer_links": [], "allowed_paths": [str(EXAMPLES)], "max_file_size": UPLOAD,
        "share": False, "quiet": True, "show_error": True, "ssr_mode": False, "enable_monitoring": False, "pwa": False, "mcp_server": False,
        "run_history": False,
    }  # fmt: skip
