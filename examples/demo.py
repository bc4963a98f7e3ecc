"""Show the embedded model at work on a folder of pictures: ``make demo``, or ``python -m examples.demo --inputs FOLDER``.

``requests.json`` in the folder says what to ask about which picture, and may hold the truth to compare with. Pictures
that it does not name are captioned and read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from app.inputs import expand
from app.rows import json_line, message_of, row_of
from vlm import DiffusionVLM, Result, VLMError
from vlm.structure.conjunction import escape

HERE = Path(__file__).parent


def requests_in(folder: Path) -> list[dict[str, Any]]:
    """The requests of a folder, picture by picture."""
    listed = folder / "requests.json"
    requests: list[dict[str, Any]] = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []
    named = {request["image"] for request in requests}
    for found in expand([str(folder)]).files:
        name = Path(found.path).name
        if found.error is None and name not in named:
            requests += [{"image": name, "task": task} for task in ("caption", "read")]
    return requests


def answer(model: DiffusionVLM, folder: Path, request: dict[str, Any]) -> Result:
    """The model's result; a bad picture gives a failed one."""
    image, task = [folder / request["image"]], request["task"]
    if task == "caption":
        results = model.caption(image)
    elif task == "ask":
        results = model.ask(image, request["question"])
    elif task == "extract":
        results = model.extract(image, folder / request["schema"])
    elif task == "ground":
        results = model.ground(image, request["instruction"])
    else:
        results = model.read(image)
    result: Result = results[0]
    return result


def checks(request: dict[str, Any], result: Result) -> dict[str, bool]:
    """Whether what is known to be true was found, by JSON pointer ('' for a text)."""
    truth = request.get("truth")
    if truth is None or result.status == "error":
        return {}
    if request["task"] == "extract":
        return dict(_leaves(truth, result.data, ""))
    if request["task"] == "ground":
        x0, y0, x1, y1 = truth["box"]
        box = result.box
        hit = box is not None and x0 <= (box[0] + box[2]) / 2 <= x1 and y0 <= (box[1] + box[3]) / 2 <= y1
        return {"/action": result.data["action"] == truth["action"], "/bbox": hit}
    return {"": result.text.strip().lower() == str(truth).lower()}


def _leaves(truth: Any, data: Any, pointer: str) -> list[tuple[str, bool]]:
    if isinstance(truth, dict):
        return [pair for key, value in truth.items() for pair in _leaves(value, (data or {}).get(key), f"{pointer}/{escape(key)}")]
    if isinstance(truth, list):
        items = data or []
        return [pair for i, value in enumerate(truth) for pair in _leaves(value, items[i] if i < len(items) else None, f"{pointer}/{i}")]
    return [(pointer, truth == data)]


def show(request: dict[str, Any], result: Result, right: dict[str, bool]) -> str:
    """A request and its result as a block of text."""
    words = request.get("question") or request.get("instruction") or request.get("schema") or ""
    usage = result.usage
    head = f"  {request['task']:<8} {words:<44} {usage.forwards:>3} forwards {usage.ms:>7.0f} ms"
    if result.status == "error":
        return f"{head}\n    error: {message_of(result)}"
    if request["task"] == "extract":
        lines = [f"    {'field':<26} {'value':<36} {'sure':>5}  {'box in pixels':<22} right"]
        for pointer, info in result.fields.items():
            box = "" if info.box is None else str([round(v) for v in info.box])
            lines.append(f"    {_cut(pointer, 26):<26} {_cut(json.dumps(info.value, ensure_ascii=False), 36):<36} {info.confidence:>5.2f}  {box:<22} {_mark(right, pointer)}")
        return "\n".join([head, *lines])
    if request["task"] == "ground":
        box = "nothing was pointed at" if result.box is None else str([round(v) for v in result.box])
        return f"{head}\n    {result.data['action']} {box:<58} {_mark(right, '/bbox')}"
    text = "\n    ".join(result.text.splitlines())
    return f"{head}\n    {text}   {_mark(right, '')}".rstrip()


def _mark(right: dict[str, bool], pointer: str) -> str:
    return {True: "yes", False: "no"}[right[pointer]] if pointer in right else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 when every picture was worked on, whatever the model said about it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, default=HERE / "inputs")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--model", help="checkpoint folder (default: pocket)")
    args = parser.parse_args(argv)
    try:
        model = DiffusionVLM.from_pretrained(args.model)
        requests = requests_in(args.inputs)
        results = [answer(model, args.inputs, request) for request in tqdm(requests, unit="request", file=sys.stderr, disable=not sys.stderr.isatty(), leave=False)]
    except VLMError as error:
        print(f"demo: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "demo.jsonl"
    met: list[bool] = []
    with path.open("w", encoding="utf-8") as file:
        before = ""
        for request, result in zip(requests, results, strict=True):
            right = checks(request, result)
            met += right.values()
            if request["image"] != before:
                print(f"\n{request['image']}")
            before = request["image"]
            print(show(request, result, right))
            file.write(json_line({"request": request, **row_of(result, request["task"]), "right": right}) + "\n")
    info = model.info()
    print(f"\n{len(results)} results of {info['name']} ({info['parameters']['total'] / 1e6:.1f} M parameters) are in {path}")
    if met:
        print(f"{sum(met)} of {len(met)} values that are known came out right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
