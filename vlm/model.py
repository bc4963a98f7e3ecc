"""DiffusionVLM: the public API. Images in; captions, answers, JSON, boxes and lines out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision.loading import load_image
from vision.reader import ReaderConfig
from vision.reading import Reading
from vision.tokens import THING, text_of
from vlm.batching import Batches, Seen, charged
from vlm.calibration import Calibration
from vlm.checkpoint import POCKET, fingerprint, is_pocket, load_pocket
from vlm.decoding.canvas import MASK, Canvas
from vlm.decoding.contracts import Denoiser
from vlm.decoding.loop import Frame, decode
from vlm.decoding.stops import EndOfText, Never
from vlm.decoding.windows import FullWindow
from vlm.engine import Engine, Plan, PocketEngine, user_turn
from vlm.errors import OptionError, PromptError
from vlm.grounding.actions import action_schema
from vlm.grounding.answers import POINTING_SCHEMA, REQUEST, pointed, written
from vlm.processor.messages import Messages
from vlm.processor.prompt import Prompt
from vlm.results import Item, Line, Result, Usage
from vlm.structure.fill import Filled, fill
from vlm.structure.scaffold import Scaffold, compile_scaffold
from vlm.structure.schema import parse_schema

if TYPE_CHECKING:
    from vlm.checkpoints.placement import DeviceMap

Images = Any

#: Question behind ``caption``.
CAPTION = "Describe the image."


@dataclass
class Partial:
    """What ``stream`` yields: the frame of a step and the text as it stands, one string a row, masks as '·'."""

    frame: Frame
    text: list[str]
    result: list[Result] | None = None


class DiffusionVLM:
    """A diffusion vision-language model with everything it needs.

    Use :meth:`from_pretrained`. Every task takes one image (path, bytes, PIL image or array), a list or an iterator. A list
    in gives a list of results out, computed as batches; an iterator in gives an iterator of results, in the same order and
    in bounded memory, that takes images as it needs them.
    """

    def __init__(self, engine: Engine, name: str = "pocket", batch_size: int = 8) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}", remedy="use 1 or more")
        self.engine, self.name, self.batch_size = engine, name, batch_size
        #: Maps the confidences of fields to how often they are right; None leaves them as the model gives them.
        self.calibration: Calibration | None = None
        self.tokenizer = engine.tokenizer

    @classmethod
    def from_pretrained(
        cls, path: str | Path | None = None, *, device: str | None = None, dtype: str | None = None, variant: str | None = None,
        tower: str | Path | None = None, device_map: DeviceMap | None = None, max_memory: Mapping[int | str, int | str] | None = None,
        offload_folder: str | Path | None = None,
    ) -> DiffusionVLM:  # fmt: skip
        """Load a model.

        Args:
            path: folder of a checkpoint, ours or published, or the id of a Hub repository; None loads pocket, the model
                shipped with the package.
            device: 'cpu' (the default), for published checkpoints any of torch's. dtype: of the weights; pocket has float32
                (its matrices run in bf16 where that is faster), others 'float32', 'bfloat16', 'float16', by default as stored.
            variant: of checkpoints whose config.json cannot tell it (see the family's page), by default read off the name.
            tower: folder of the base vision tower, for published checkpoints without one or with one of unknown sizes.
            device_map: 'auto', or devices by module name: spreads the blocks of a published model over GPUs, host memory and
                disk (:func:`vlm.checkpoints.placement.place`; needs accelerate). max_memory, offload_folder: for it.

        Raises:
            CheckpointError: missing or damaged files, wrong shapes. OptionError: unknown device, dtype or variant.
        """
        if path is not None and not is_pocket(path):
            from vlm.published import PublishedEngine

            placement = {"device_map": device_map, "max_memory": max_memory, "offload_folder": offload_folder}
            return cls(PublishedEngine.open(path, device=device, dtype=dtype, variant=variant, tower=tower, **placement), Path(path).name)
        if device not in (None, "cpu"):
            raise OptionError(f"device {device!r} is not supported by pocket yet", remedy="use 'cpu'")
        if dtype not in (None, "float32"):
            raise OptionError(f"dtype {dtype!r} is not supported by pocket", remedy="use 'float32'")
        if variant is not None or tower is not None or device_map is not None:
            raise OptionError("pocket has neither variants nor another tower, and fits on one device", remedy="leave variant, tower and device_map out")
        model, tokenizer, name = load_pocket(path)
        found = cls(PocketEngine(model, tokenizer), name)
        found.calibration = Calibration.load(POCKET if path is None else Path(path))
        return found

    # ------------------------------------------------------------------ tasks

    def caption(self, images: Images, *, max_new_tokens: int = 64, on_error: str | None = None, **decoding: Any) -> Any:
        """Say in a sentence what is on each image. Returns a Result, or a list for a list."""
        return self._ask_all(images, CAPTION, max_new_tokens, on_error, decoding)

    def ask(self, images: Images, question: str, *, max_new_tokens: int = 32, on_error: str | None = None, **decoding: Any) -> Any:
        """Answer a question about each image.

        Raises:
            PromptError: the question is empty.
        """
        _check_words(question, "question")
        return self._ask_all(images, question, max_new_tokens, on_error, decoding)

    def extract(self, images: Images, schema: Any, *, lenient: bool = False, growth: int = 0, on_error: str | None = None, **decoding: Any) -> Any:
        """Fill a JSON schema from each image: valid by construction, with a confidence and a box for every field.

        Args:
            images: one or a list.
            schema: JSON schema (dict or JSON text), a short template, a dataclass, TypedDict or Pydantic model.
            lenient: leave out keywords that cannot be guaranteed; the result's warnings name them as not checked.
            growth: cells by which texts that fill their slot are given more room, again and again; 0 for none.
            on_error: 'row' turns a bad image into a Result with status 'error' (default for lists and iterators); 'raise'.

        Raises:
            SchemaError: with the JSON pointer of the culprit.
        """
        scaffold = compile_scaffold(parse_schema(schema, lenient=lenient), self.tokenizer, symbols=self.engine.symbols)
        plan = self.engine.plan(decoding)

        def run(readings: list[Any]) -> list[Result]:
            prompts = [self._prompt(self.engine.extraction(scaffold), plan) for _ in readings]
            return self._fill(prompts, [[r] for r in readings], scaffold, plan, growth=growth)

        return self._over(images, run, on_error)

    def ground(
        self, images: Images, instruction: str, *, candidates: int = 0, min_confidence: float = 0.0, on_error: str | None = None, **decoding: Any
    ) -> Any:
        """Find the widget an instruction speaks of.

        Pocket points at it. Other models write it down in thousandths: whether it is there, then the near corner, then the far
        one; three forwards each at most, unless `max_forwards` says otherwise.

        Args:
            candidates: how many likely places to list. For models that write numbers these are as many draws, run beside it.
            min_confidence: below it nothing counts as found.

        Returns:
            Result with ``data`` {action, bbox in 0..1000 of the image; text, of models that write} and ``box`` in pixels;
            status 'partial' and no box when it is not on this screen.
        """
        _check_words(instruction, "instruction")
        if isinstance(self.engine, PocketEngine):
            return self._point(self.engine, images, instruction, candidates, min_confidence, on_error, decoding)
        scaffold = compile_scaffold(parse_schema(action_schema()), self.tokenizer, symbols=self.engine.symbols, gated=True)
        plan = self._in_one(self.engine.plan({"max_forwards": 3, **decoding}), decoding)
        drawn = self._in_one(self.engine.plan({"max_forwards": 3, "temperature": 1.0, **decoding}), decoding)

        def run(readings: list[Any]) -> list[Result]:
            prompts = [self._prompt(REQUEST.format(instruction=instruction), plan) for _ in readings]
            pictures = [[r] for r in readings]
            filled = self._fill(prompts, pictures, scaffold, plan)
            draws = [self._fill(prompts, pictures, scaffold, replace(drawn, seed=plan.seed + 1 + i)) for i in range(candidates)]
            return [
                written(result, reading.size, [d[row] for d in draws], candidates, min_confidence)
                for row, (result, reading) in enumerate(zip(filled, readings, strict=True))
            ]

        return self._over(images, run, on_error)

    @staticmethod
    def _in_one(plan: Plan, decoding: dict[str, Any]) -> Plan:
        """A plan that looks at a short canvas as a whole, unless blocks were asked for."""
        return plan if "block_length" in decoding else replace(plan, recipe=plan.recipe.with_parts(window=FullWindow()))

    def _point(
        self, engine: PocketEngine, images: Images, instruction: str, candidates: int, least: float, on_error: str | None, decoding: dict[str, Any]
    ) -> Any:
        scaffold = compile_scaffold(parse_schema(POINTING_SCHEMA), self.tokenizer)
        plan = self.engine.plan(decoding)
        first = scaffold.by_pointer["/target"].start

        def run(readings: list[Reading]) -> list[Result]:
            prompts = [self._prompt(instruction, plan) for _ in readings]
            denoiser = engine.denoiser(prompts, [[r] for r in readings], len(scaffold), plan, scaffold)
            denoiser.pointed = {} if candidates else None
            filled = self._fill(prompts, [], scaffold, plan, by_first_cell=True, denoiser=denoiser)
            return [
                pointed(result, reading, engine.pointed(denoiser, row, first), candidates, least)
                for row, (result, reading) in enumerate(zip(filled, readings, strict=True))
            ]

        return self._over(images, run, on_error)

    def read(self, images: Images, *, on_error: str | None = None) -> Any:
        """Read the text of each image: ``text`` in reading order, ``lines`` with boxes.

        The tower reads by itself here; the backbone is not asked, so ``usage.forwards`` is 0.
        """
        config = self._pocket("read").model.config.reader

        def run(readings: list[Reading]) -> list[Result]:
            return [_lines(r, config) for r in readings]

        return self._over(images, run, on_error)

    def objects(self, images: Images, *, on_error: str | None = None) -> Any:
        """Objects and widgets of each image as ``items``, by the tower alone, from top to bottom."""
        self._pocket("objects")

        def run(readings: list[Reading]) -> list[Result]:
            return [self._items(r) for r in readings]

        return self._over(images, run, on_error)

    def generate(self, messages: Messages, *, max_new_tokens: int = 64, **decoding: Any) -> Result:
        """Answer a conversation of typed messages (multi-turn, several images).

        Args:
            messages: a string, Message objects, or dicts of the chat-completions kind.
            decoding: ``preset``, ``seed`` and the preset's options.

        Raises:
            PromptError, ContextLengthError, OptionError, ImageError.
        """
        last: Result | None = None
        for part in self.stream(messages, max_new_tokens=max_new_tokens, **decoding):
            if part.result is not None:
                last = part.result[0]
        assert last is not None
        return last

    def stream(self, messages: Messages, *, max_new_tokens: int = 64, **decoding: Any) -> Iterator[Partial]:
        """Like :meth:`generate`, yielding each step; the last item carries the result.

        Everything that can be wrong with the request is raised by the call itself, not by the first step.
        """
        plan = self.engine.plan(decoding)
        _check_cells(max_new_tokens)
        prompt = self.engine.prompt(messages, plan)
        start = time.perf_counter()
        loaded = [load_image(image) for image in prompt.images]
        denoiser = self.engine.denoiser([prompt], [self.engine.see_all([image.rgb for image in loaded])], max_new_tokens, plan)
        ms = (time.perf_counter() - start) * 1000
        return self._stream(denoiser, max_new_tokens, plan, ms, tuple(f"{image.source}: {w}" for image in loaded for w in image.warnings))

    def _stream(self, denoiser: Denoiser, cells: int, plan: Plan, ms: float, warnings: tuple[str, ...]) -> Iterator[Partial]:
        for part in self._free(denoiser, 1, cells, plan):
            if part.result is not None:
                result = charged(part.result[0], ms)
                part = replace(part, result=[replace(result, warnings=(*warnings, *result.warnings))])
            yield part

    @cached_property
    def fingerprint(self) -> str:
        """What the weights are known by: 16 hex digits, the same wherever they are loaded in whatever precision."""
        return fingerprint(self.engine.model)

    def info(self) -> dict[str, Any]:
        """Name, sizes and limits of the model."""
        return {"name": self.name, **self.engine.info()}

    # ------------------------------------------------------------- machinery

    def _prompt(self, text: str, plan: Plan | None = None) -> Prompt:
        """One picture and one text."""
        return self.engine.prompt(user_turn(text), plan or self.engine.plan({}))

    def _pocket(self, task: str) -> PocketEngine:
        """The engine, for what only the embedded model's tower and copy head can do."""
        if not isinstance(self.engine, PocketEngine):
            raise OptionError(f"{self.name} cannot {task}: it has no reading tower and does not point", remedy="use ask or extract, or the model pocket")
        return self.engine

    def _over(self, images: Images, run: Callable[[list[Any]], list[Result]], on_error: str | None) -> Any:
        """Load, read and run in batches; bad images become rows or raise."""
        if on_error not in (None, "row", "raise"):
            raise OptionError(f"on_error is {on_error!r}", remedy="use 'row' or 'raise'")
        many = isinstance(images, (list, tuple, Iterator))
        batches = Batches(self._look, run, self.batch_size, as_rows=on_error == "row" or (on_error is None and many))
        if isinstance(images, Iterator):
            return batches(images)
        results = list(batches(images if many else [images]))
        return results if many else results[0]

    def _look(self, index: int, image: Any) -> Seen:
        start = time.perf_counter()
        loaded = load_image(image)
        reading = self.engine.see(loaded.rgb)
        return Seen(index, loaded.source, loaded.warnings, reading, (time.perf_counter() - start) * 1000)

    def _ask_all(self, images: Images, question: str, cells: int, on_error: str | None, decoding: dict[str, Any]) -> Any:
        plan = self.engine.plan(decoding)
        _check_cells(cells)

        def run(readings: list[Any]) -> list[Result]:
            start = time.perf_counter()
            denoiser = self.engine.denoiser([self._prompt(question, plan) for _ in readings], [[r] for r in readings], cells, plan)
            share = (time.perf_counter() - start) * 1000 / len(readings)
            results: list[Result] = []
            for part in self._free(denoiser, len(readings), cells, plan):
                results = part.result or results
            return [charged(result, share) for result in results]

        return self._over(images, run, on_error)

    def _free(self, denoiser: Denoiser, rows: int, cells: int, plan: Plan) -> Iterator[Partial]:
        """Free text behind encoded prompts: a canvas of open cells that ends at the end token."""
        start = time.perf_counter()
        symbols, recipe = self.engine.symbols, plan.recipe
        canvas = Canvas.blank(rows, cells, mask_id=symbols.mask, pad_id=symbols.pad)
        banned = self.engine.banned(plan, None)
        stop = EndOfText(self.engine.stop_ids) if isinstance(recipe.stop, Never) else recipe.stop
        full = recipe.with_parts(banned=banned, stop=stop)
        for frame in decode(denoiser, canvas, full, seed=plan.seed):
            yield Partial(frame, [self._show(row, state) for row, state in zip(frame.ids.tolist(), frame.state.tolist(), strict=True)])
        ms = (time.perf_counter() - start) * 1000 / rows
        results = [self._answer(canvas, row, ms) for row in range(rows)]
        last = Frame(int(canvas.step.max()), canvas.ids.clone(), canvas.states(canvas.masked), canvas.commit_confidence.clone(), canvas.forwards.clone())
        yield Partial(last, [r.text for r in results], results)

    def _show(self, ids: list[int], state: list[int]) -> str:
        """A row as it stands: masks as dots, nothing after the end token."""
        text, known = "", []
        for token, how in zip(ids, state, strict=True):
            if how != MASK and token in self.engine.stop_ids:
                break
            if how != MASK:
                known.append(token)  # decoded as a run: a character may be spelled by several byte tokens
                continue
            text += self.tokenizer.decode(known) + "·"
            known = []
        return text + self.tokenizer.decode(known)

    def _answer(self, canvas: Canvas, row: int, ms: float) -> Result:
        ids = canvas.ids[row].tolist()
        end = next((i for i, token in enumerate(ids) if token in self.engine.stop_ids), len(ids))
        sure = canvas.commit_confidence[row, : min(end + 1, len(ids))]
        kept = [i for i in ids[:end] if i not in self.tokenizer.control_ids]
        usage = Usage(int(canvas.step[row]), int(canvas.forwards[row]), end, ms)
        cut = () if end < len(ids) else (f"the answer filled all {end} cells and may be cut off; raise max_new_tokens",)
        return Result(self.tokenizer.decode(kept).strip(), confidence=float(sure.prod()), warnings=cut, usage=usage)

    def _fill(
        self, prompts: list[Prompt], pictures: list[list[Any]], scaffold: Scaffold, plan: Plan, *, growth: int = 0, by_first_cell: bool = False,
        denoiser: Denoiser | None = None,
    ) -> list[Result]:  # fmt: skip
        """Fill the slots of a scaffold behind prompts; `by_first_cell`: a slot's box is where its first cell points."""
        start = time.perf_counter()
        if denoiser is None:
            denoiser = self.engine.denoiser(prompts, pictures, len(scaffold), plan, scaffold)
        recipe = plan.recipe.with_parts(banned=self.engine.banned(plan, scaffold), stop=Never())
        filled = fill(denoiser, [scaffold] * len(prompts), recipe, seed=plan.seed, growth=growth)
        ms = (time.perf_counter() - start) * 1000 / len(prompts)
        return [self._data(filled, row, denoiser, ms, by_first_cell) for row in range(len(prompts))]

    def _data(self, filled: Filled, row: int, denoiser: Denoiser, ms: float, by_first_cell: bool) -> Result:
        canvas, scaffold = filled.canvas, filled.scaffolds[row]
        every = self.engine.locator(denoiser, canvas, row)
        locate = (lambda cells: every(cells[:1])) if by_first_cell and every is not None else every
        data, fields = scaffold.read(canvas.ids[row].tolist(), canvas.commit_confidence[row].tolist(), locate=locate, valid=filled.valid[row])
        if self.calibration is not None:
            fields = {pointer: self.calibration(info) for pointer, info in fields.items()}
        status = "forced" if any(f.forced for f in fields.values()) else "ok"
        sure = min((f.confidence for f in fields.values()), default=1.0)
        written = int((canvas.committed_at[row] >= 0).sum())
        usage = Usage(int(canvas.step[row]), int(canvas.forwards[row]), written, ms)
        return Result(json.dumps(data, ensure_ascii=False), data, confidence=sure, fields=fields, status=status, warnings=scaffold.warnings(data), usage=usage)

    def _items(self, reading: Reading) -> Result:
        config, tokens = self._pocket("objects").model.config.reader, reading.tokens
        items = []
        for i in range(len(tokens)):
            if tokens.kind[i] != THING:
                continue
            x0, y0, x1, y1 = tokens.boxes[i].tolist()
            color = config.colors[tokens.color[i] - 1] if tokens.color[i] else None
            items.append(Item(config.things[tokens.classes[i, 0] - 1], color, (x0, y0, x1, y1), float(tokens.score[i])))
        sure = min((item.confidence for item in items), default=1.0)
        return Result(", ".join(f"{i.color or ''} {i.kind}".strip() for i in items), items=tuple(items), confidence=sure)


def _lines(reading: Reading, config: ReaderConfig) -> Result:
    rows = text_of(reading.tokens, config.alphabet)
    lines = tuple(Line(text, box, sure) for text, box, sure in rows)
    total = sum(len(line.text) for line in lines)
    sure = sum(line.confidence * len(line.text) for line in lines) / total if total else 1.0
    return Result("\n".join(line.text for line in lines), lines=lines, confidence=sure, usage=Usage(tokens=total))


def _check_words(words: Any, what: str) -> None:
    if not isinstance(words, str):
        raise PromptError(f"the {what} is a {type(words).__name__}", remedy="give text")
    if not words.strip():
        raise PromptError(f"the {what} is empty", remedy="write one")


def _check_cells(cells: Any) -> None:
    if not isinstance(cells, int) or isinstance(cells, bool) or cells < 1:
        raise OptionError(f"max_new_tokens is {cells!r}", remedy="use an integer of 1 or more")
