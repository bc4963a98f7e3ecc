"""Inputs that several pages share: a picture, the decoding method, examples to click."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from app.options import parse_options
from app.web import draw
from app.web.pictures import SUFFIXES, open_picture
from app.web.runs import PRIVATE, Example
from vlm.errors import OptionError, VLMError

EXAMPLES = Path(__file__).parent / "examples"


class PictureInput:
    """An upload, which of its pages is meant, and what it looks like; :meth:`view` is placed by the page and also draws boxes."""

    def __init__(self, name: str, label: str = "Picture") -> None:
        self.name = name
        self.file = gr.File(label=label, file_types=SUFFIXES, height=110, elem_id=f"{name}-file")
        self.page = gr.Number(1, label="Page of the file", precision=0, visible=False, elem_id=f"{name}-number")

    @property
    def inputs(self) -> list[Any]:
        """Components whose values :func:`app.web.pictures.open_picture` takes; the first alone is enough to fill in an example."""
        return [self.file, self.page]

    def view(self) -> Any:
        """The component that shows it, here."""
        shown = gr.HTML(draw.picture("", (1, 1), ""), elem_id=f"{self.name}-page")
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
        self.file.upload(lambda path: _look(path, None), [self.file], [shown, self.page], **quiet)
        self.page.input(_look, self.inputs, [shown, self.page], **quiet)
        self.file.clear(lambda: (draw.picture("", (1, 1), ""), gr.update(value=1, visible=False)), None, [shown, self.page], **quiet)
        return shown


def _look(path: str | None, number: float | None) -> tuple[str, Any]:
    """What a page looks like, and the number to choose pages by, where there are several."""
    try:
        found = open_picture(path, number)
    except VLMError as error:
        return draw.status(str(error), "alert"), gr.skip()
    # no bounds: Gradio answers a number outside them with an error that the visitor does not see
    chosen = {"value": 1} if number is None else {}
    return found.drawn(), gr.update(label=f"Page of the file, 1 to {found.pages}", visible=found.pages > 1, **chosen)


class Decoding:
    """Preset, its options and the seed, folded away."""

    def __init__(self, model: Any, name: str, *, preset: str | None = None, folded: bool = True, label: str = "Decoding") -> None:
        self.presets: Mapping[str, Mapping[str, Any]] = model.presets()
        start = preset or model.info().get("default_preset") or next(iter(self.presets))
        with gr.Accordion(label, open=not folded):
            self.preset = gr.Dropdown(list(self.presets), value=start, label="Preset", elem_id=f"{name}-preset")
            self.options = gr.Textbox(
                self.lines(start), label="Options of the preset", lines=3, max_lines=12, info="one name=value a line", elem_id=f"{name}-options"
            )
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id=f"{name}-seed")
        self.preset.input(self.lines, [self.preset], [self.options], queue=False, show_progress="hidden", **PRIVATE)

    @property
    def inputs(self) -> list[Any]:
        """Components whose values :meth:`parse` takes."""
        return [self.preset, self.options, self.seed]

    def lines(self, preset: str) -> str:
        """The options of a preset with their defaults, as text."""
        return "\n".join(f"{name}={json.dumps(value)}" for name, value in self.presets.get(preset, {}).items())

    @staticmethod
    def parse(preset: str, options: str, seed: float | None) -> dict[str, Any]:
        """Keyword arguments of the model's tasks; raises OptionError."""
        if seed is None:
            raise OptionError("there is no seed", remedy="give a whole number")
        return {"preset": preset, "seed": int(seed), **parse_options((line for line in options.splitlines() if line.strip()), "option")}


def example_buttons(examples: Sequence[tuple[str, Sequence[Any]]], name: str) -> list[Example]:
    """A row of buttons, each with the values it fills in."""
    with gr.Row(elem_classes="vlm-examples"):
        return [
            Example(gr.Button(f"Example: {label}", size="sm", min_width=150, elem_id=f"{name}-example-{i}"), tuple(values))
            for i, (label, values) in enumerate(examples)
        ]


def example(name: str) -> str:
    """Path of a picture that comes with the app."""
    return str(EXAMPLES / name)
