"""Snapshots as HTML. Everything that comes from a model, a file or a person is escaped here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from app.web.steps import Snapshot
from vlm.live import Cell
from vlm.results import Box, FieldInfo, Result

#: Upper ends of the confidence classes of new cells.
CLASSES = (0.3, 0.6, 0.85, 1.01)
#: What the states of cells are called on the page, in the order of the legend.
LEGEND = {
    "given": "given", "mask": "open", "new c0": "new, unsure", "new c1": "", "new c2": "", "new c3": "new, sure", "kept": "kept", "remasked": "taken back",
}  # fmt: skip
COLOURS = 8  # of boxes on a picture; style.css has them


@dataclass(frozen=True)
class Mark:
    """A box on a picture, in its pixels, with the words that belong to it."""

    box: Box
    label: str
    colour: int = 0


def canvas(shot: Snapshot | None) -> str:
    """The cells of a canvas, coloured by state."""
    if shot is None or not shot.cells:
        return '<div class="vlm-canvas vlm-empty">The canvas appears here.</div>'
    said = f"Canvas after step {shot.step}: {shot.written} cells written, {shot.open} open. {shot.text}"
    inside = "".join(_cell(cell) for cell in _without_tail(shot.cells))
    return f'<div class="vlm-canvas" role="img" aria-label="{escape(said)}">{inside}</div>'


def _without_tail(cells: Sequence[Cell]) -> list[Cell]:
    """Cells up to the last one that says something: the padding behind an answer is left out."""
    last = max((i for i, cell in enumerate(cells) if cell.text or cell.state in ("mask", "remasked") or cell.slot), default=-1)
    return list(cells[: last + 2])


def _cell(cell: Cell) -> str:
    known = cell.state not in ("mask", "remasked")
    text, kind = cell.text, cell.state
    if cell.state == "new":
        kind += f" c{next(i for i, end in enumerate(CLASSES) if cell.confidence < end)}"
    if cell.control and known:
        text, kind = _control(cell.control), kind + " control"
    elif not known:
        text = "·"
    hint = f"{cell.state}, {cell.confidence:.0%}" if cell.state in ("new", "kept") else cell.state
    hint += f", {cell.slot}" if cell.slot else ""
    shown = escape(text).replace(" ", "&nbsp;").replace("\n", "↵")
    line = "<br>" if "\n" in text else ""
    return f'<span class="{kind}" title="{escape(hint)}">{shown or "&#8203;"}</span>{line}'


def _control(name: str) -> str:
    if "null" in name:
        return "∅"
    return "" if "pad" in name else "■"


def legend() -> str:
    """What the colours mean."""
    items = "".join(f'<span class="{kind}">{"·" if kind in ("mask", "remasked") else "a"}</span> {name} ' for kind, name in LEGEND.items())
    return f'<div class="vlm-canvas vlm-legend" aria-hidden="true">{items}</div>'


def counters(shot: Snapshot | None) -> str:
    """Steps, forwards, cells a forward and time."""
    if shot is None:
        return ""
    rate = f"{shot.written / shot.forwards:.1f}" if shot.forwards and shot.cells else "-"
    sure = f"{shot.result.confidence:.0%}" if shot.result is not None else "-"
    pairs = [("step", shot.step), ("forwards", shot.forwards), ("cells a forward", rate), ("ms", f"{shot.ms:.0f}"), ("confidence", sure)]
    inside = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="vlm-counters">{inside}</dl>'


def status(words: str, kind: str = "status") -> str:
    """A line that screen readers announce; `kind` is 'status' or 'alert'."""
    return f'<div class="vlm-{kind}" role="{kind}">{escape(words)}</div>'


def finished(result: Result) -> str:
    """The status line of a result."""
    if result.status == "error":
        return status((result.error or {}).get("message", "failed"), "alert")
    words = {"ok": "Done.", "partial": "Done, but something stayed undecided.", "forced": "Done; some values were repaired to satisfy the schema."}
    return status(" ".join([words[result.status], *(f"Note: {w}." for w in result.warnings)]))


def meter(sure: float) -> str:
    """A bar for a confidence."""
    return f'<meter min="0" max="1" low="0.3" high="0.7" optimum="1" value="{sure:.3f}">{sure:.0%}</meter> <span>{sure:.0%}</span>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], empty: str = "") -> str:
    """A table of HTML cells, the first of each row its head."""
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    if not body:
        return f'<div class="vlm-empty">{escape(empty)}</div>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return f'<div class="vlm-scroll"><table class="vlm-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def fields(shot: Snapshot | None) -> str:
    """Each field with its value, its confidence and whether it was repaired; open slots with their dots."""
    rows = []
    for i, (pointer, text, info) in enumerate(_fields(shot)):
        name = f'<i class="vlm-dot b{i % COLOURS}"></i>{escape(pointer[1:])}'
        if info is None:
            rows.append((name, f'<code class="vlm-open">{escape(text)}</code>', "open"))
        else:
            value = "not on the page" if info.value is None else escape(_shown(info.value))
            rows.append((name, value, meter(info.confidence) + (" repaired" if info.forced else "")))
    return table(("field", "value", "confidence"), rows, "Fields appear here as they are decided.")


def _fields(shot: Snapshot | None) -> list[tuple[str, str, FieldInfo | None]]:
    if shot is None:
        return []
    if shot.result is not None:
        return [(pointer, "", info) for pointer, info in shot.result.fields.items()]
    return [(view.pointer, view.text, view.info) for view in shot.slots]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def marks(shot: Snapshot | None) -> list[Mark]:
    """The boxes of the fields that are decided, coloured like their rows in the table."""
    return [Mark(info.box, f"{p[1:]}: {_shown(info.value)}", i % COLOURS) for i, (p, _, info) in enumerate(_fields(shot)) if info is not None and info.box]


def json_so_far(shot: Snapshot | None) -> str:
    """The JSON as it stands: decided values as they will be, open ones as their dots."""
    if shot is None:
        return '<pre class="vlm-json vlm-empty">JSON appears here, slot by slot.</pre>'
    data = shot.result.data if shot.result is not None else _nested(shot)
    return f'<pre class="vlm-json" tabindex="0" aria-label="JSON">{escape(json.dumps(data, ensure_ascii=False, indent=2))}</pre>'


def _nested(shot: Snapshot) -> Any:
    """The slots put into their places; array places as laid out."""
    root: dict[str, Any] = {}
    for view in shot.slots:
        steps = [step.replace("~1", "/").replace("~0", "~") for step in view.pointer.split("/")[1:]]
        node = root
        for step in steps[:-1]:
            node = node.setdefault(step, {})
        node[steps[-1]] = view.text if view.info is None else view.info.value
    return _arrays(root)


def _arrays(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    inside = {key: _arrays(value) for key, value in node.items()}
    places = [str(i) for i in range(len(inside))]
    return list(inside.values()) if inside and list(inside) == places else inside


def picture(path: str, size: tuple[int, int], name: str, found: Sequence[Mark] = ()) -> str:
    """A picture with boxes; `path` is a file that the server may hand out, `size` the pixels the boxes are in."""
    if not path:
        return '<div class="vlm-empty vlm-sheet">The picture appears here.</div>'
    shapes = ""
    for mark in found:
        x0, y0, x1, y1 = mark.box
        place = f'x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 1):.1f}" height="{max(y1 - y0, 1):.1f}"'
        shapes += f'<rect class="b{mark.colour}" {place} vector-effect="non-scaling-stroke"><title>{escape(mark.label)}</title></rect>'
    said = "; ".join(mark.label for mark in found)
    alt = escape(name + (f", {len(found)} marked: {said}" if found else ""))
    svg = f'<svg viewBox="0 0 {size[0]} {size[1]}" preserveAspectRatio="none" aria-hidden="true">{shapes}</svg>'
    return f'<div class="vlm-sheet"><img src="gradio_api/file={quote(path)}" alt="{alt}">{svg}</div>'
