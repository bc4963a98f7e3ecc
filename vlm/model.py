"""DiffusionVLM: the public API. Images in; captions, answers, JSON, boxes and lines out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision.loading import LoadedImage, load_image
from vision.reader import ReaderConfig
from vision.reading import Reading
from vlm.batching import Batches, Seen, charged, of_picture, timed
from vlm.calibration import Calibration
from vlm.checkpoint import POCKET, fingerprint, is_pocket, load_pocket
from vlm.decoding.contracts import Denoiser
from vlm.decoding.windows import FullWindow
from vlm.engine import Engine, Plan, PocketEngine, user_turn
from vlm.errors import OptionError, PromptError
from vlm.filling import Filling
from vlm.grounding.actions import action_schema
from vlm.grounding.answers import POINTING_SCHEMA, REQUEST, pointed, written
from vlm.live import Cell, Partial, cells_of
from vlm.processor.messages import ImagePart, Message, Messages, TextPart
from vlm.processor.prompt import Prompt
from vlm.readouts import items_of, lines_of
from vlm.results import Result
from vlm.scenes import in_words, scene_schema, shapes_in
from vlm.structure.blanks import compile_blanks
from vlm.structure.scaffold import Scaffold, compile_scaffold
from vlm.structure.schema import parse_schema
from vlm.writing import Writing

if TYPE_CHECKING:
    from vlm.checkpoints.placement import DeviceMap

Images = Any

#: Question behind ``caption``.
CAPTION = "Describe the image."
#: What the user says where a text with blanks comes without words of its own.
INFILL = "Fill in the blanks."




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
        """Say in a sentence what is on each image. Returns a Result, or a list for a list.

        Pocket lists a scene of several shapes by a scaffold (:mod:`vlm.scenes`); then `max_new_tokens` does not matter.
        """
        plan = self.engine.plan(decoding)
        freely = self._asking(CAPTION, max_new_tokens, plan)
        if not isinstance(self.engine, PocketEngine):
            return self._over(images, freely, on_error)
        config = self.engine.model.config.reader

        def run(readings: list[Reading]) -> list[Result]:
            counts = [shapes_in(reading, config) for reading in readings]
            found: dict[int, Result] = {}
            for count in sorted(set(counts)):
                rows = [row for row, n in enumerate(counts) if n == count]
                some = [readings[row] for row in rows]
                found |= zip(rows, self._scenes(some, count, config, plan) if count > 1 else freely(some), strict=True)
            return [found[row] for row in range(len(readings))]

        return self._over(images, run, on_error)

    def _scenes(self, readings: list[Reading], count: int, config: ReaderConfig, plan: Plan) -> list[Result]:
        scaffold = self._scaffold(scene_schema(count, config))
        prompts = [self._prompt(self.engine.extraction(scaffold), plan) for _ in readings]
        return [in_words(result) for result in self._fill(prompts, [[r] for r in readings], scaffold, plan)]

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
        scaffold = self._scaffold(schema, lenient=lenient)
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
        scaffold, plan = self._grounding(decoding)
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

    def _grounding(self, decoding: dict[str, Any]) -> tuple[Scaffold, Plan]:
        """What is filled in for a grounding request, and how: a model that points names a place, others write numbers."""
        if isinstance(self.engine, PocketEngine):
            return self._scaffold(POINTING_SCHEMA), self.engine.plan(decoding)
        return self._scaffold(action_schema(), gated=True), self._in_one(self.engine.plan({"max_forwards": 3, **decoding}), decoding)

    def _scaffold(self, schema: Any, *, lenient: bool = False, gated: bool | None = None) -> Scaffold:
        return compile_scaffold(parse_schema(schema, lenient=lenient), self.tokenizer, symbols=self.engine.symbols, gated=gated)

    @staticmethod
    def _in_one(plan: Plan, decoding: dict[str, Any]) -> Plan:
        """A plan that looks at a short canvas as a whole, unless blocks were asked for."""
        return plan if "block_length" in decoding else replace(plan, recipe=plan.recipe.with_parts(window=FullWindow()))

    def _point(
        self, engine: PocketEngine, images: Images, instruction: str, candidates: int, least: float, on_error: str | None, decoding: dict[str, Any]
    ) -> Any:
        scaffold, plan = self._grounding(decoding)
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
            return [lines_of(reading, config) for reading in readings]

        return self._over(images, run, on_error)

    def objects(self, images: Images, *, on_error: str | None = None) -> Any:
        """Objects and widgets of each image as ``items``, by the tower alone, from top to bottom."""
        config = self._pocket("objects").model.config.reader

        def run(readings: list[Reading]) -> list[Result]:
            return [items_of(reading, config) for reading in readings]

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
        warnings = tuple(f"{image.source}: {w}" for image in loaded for w in image.warnings)

        def finish(result: Result) -> Result:
            return charged(replace(result, warnings=(*warnings, *result.warnings)), ms)

        return Writing(self.engine, denoiser, 1, max_new_tokens, plan).stream(finish)

    def stream_extract(self, image: Any, schema: Any, *, lenient: bool = False, growth: int = 0, **decoding: Any) -> Iterator[Partial]:
        """Like :meth:`extract` for one image, yielding each step with its ``slots``; the last item carries the result."""
        scaffold = self._scaffold(schema, lenient=lenient)
        plan = self.engine.plan(decoding)
        seen = self._look(image)
        prompt = self._prompt(self.engine.extraction(scaffold), plan)
        filling = Filling(self.engine, [prompt], [[seen.reading]], scaffold, plan, growth=growth, calibration=self.calibration)
        return filling.stream(lambda result, _: of_picture(result, seen))

    def stream_ground(self, image: Any, instruction: str, *, candidates: int = 0, min_confidence: float = 0.0, **decoding: Any) -> Iterator[Partial]:
        """Like :meth:`ground` for one image, yielding each step; the last item carries the result. Only models that point list candidates."""
        _check_words(instruction, "instruction")
        pointing = isinstance(self.engine, PocketEngine)
        scaffold, plan = self._grounding(decoding)
        seen = self._look(image)
        prompt = self._prompt(instruction if pointing else REQUEST.format(instruction=instruction), plan)
        filling = Filling(self.engine, [prompt], [[seen.reading]], scaffold, plan, by_first_cell=pointing, calibration=self.calibration)
        if not isinstance(self.engine, PocketEngine):
            return filling.stream(lambda result, _: of_picture(written(result, seen.reading.size, [], 0, min_confidence), seen))
        engine, denoiser = self.engine, filling.denoiser
        denoiser.pointed = {} if candidates else None
        first = scaffold.by_pointer["/target"].start

        def finish(result: Result, row: int) -> Result:
            return of_picture(pointed(result, seen.reading, engine.pointed(denoiser, row, first), candidates, min_confidence), seen)

        return filling.stream(finish)

    def infill(self, text: str, image: Any = None, *, prompt: str = "", **decoding: Any) -> Result:
        """Fill the blanks of a text, each seeing what stands on both of its sides.

        Args:
            text: with blanks ``[[cells]]``, ``[[name:cells]]`` or ``[[name:cells:kind]]`` (:mod:`vlm.structure.blanks`).
            image: what the text is about, if anything. prompt: what to tell the model besides.

        Returns:
            Result with the whole text, and the blanks by name in ``data`` and ``fields``.

        Raises:
            SchemaError: a blank that cannot be read or filled. ImageError, ContextLengthError, OptionError.
        """
        *_, last = self.stream_infill(text, image, prompt=prompt, **decoding)
        assert last.result is not None
        return last.result[0]

    def stream_infill(self, text: str, image: Any = None, *, prompt: str = "", **decoding: Any) -> Iterator[Partial]:
        """Like :meth:`infill`, yielding each step with its ``slots``; the last item carries the result."""
        _check_words(text, "text")
        scaffold = compile_blanks(text, self.tokenizer, symbols=self.engine.symbols)
        plan = self.engine.plan(decoding)
        seen = None if image is None else self._look(image)
        words = prompt.strip() or ("" if seen is not None and isinstance(self.engine, PocketEngine) else INFILL)
        parts = ([] if seen is None else [ImagePart(seen.source)]) + ([TextPart(words)] if words else [])
        message = self.engine.prompt([Message("user", tuple(parts))], plan)
        filling = Filling(self.engine, [message], [[] if seen is None else [seen.reading]], scaffold, plan, calibration=self.calibration)

        def finish(result: Result, row: int) -> Result:
            whole = replace(result, text=filling.text(row))
            return whole if seen is None else of_picture(whole, seen)

        return filling.stream(finish)

    def cells(self, part: Partial, row: int = 0) -> list[Cell]:
        """The canvas of a step cell by cell, for showing it."""
        return cells_of(self.tokenizer, part.frame, row, part.owners)

    def presets(self) -> dict[str, dict[str, Any]]:
        """Decoding methods this model knows: name -> its options with their defaults."""
        return self.engine.presets()

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
        batches = Batches(load_image, self._see, run, self.batch_size, as_rows=on_error == "row" or (on_error is None and many))
        if isinstance(images, Iterator):
            return batches(images)
        results = list(batches(images if many else [images]))
        return results if many else results[0]

    def _look(self, image: Any) -> Seen:
        loaded, ms = timed(load_image, image)
        seen = self._see([loaded])[0]
        return replace(seen, ms=seen.ms + ms)

    def _see(self, loaded: Sequence[LoadedImage]) -> list[Seen]:
        readings, ms = timed(self.engine.see_each, [image.rgb for image in loaded])
        return [Seen(image.source, image.warnings, reading, ms / len(loaded)) for image, reading in zip(loaded, readings, strict=True)]

    def _ask_all(self, images: Images, question: str, cells: int, on_error: str | None, decoding: dict[str, Any]) -> Any:
        return self._over(images, self._asking(question, cells, self.engine.plan(decoding)), on_error)

    def _asking(self, question: str, cells: int, plan: Plan) -> Callable[[list[Any]], list[Result]]:
        """What answers a question in free text, from what was seen on some pictures."""
        _check_cells(cells)

        def run(readings: list[Any]) -> list[Result]:
            start = time.perf_counter()
            denoiser = self.engine.denoiser([self._prompt(question, plan) for _ in readings], [[r] for r in readings], cells, plan)
            share = (time.perf_counter() - start) * 1000 / len(readings)
            return [charged(result, share) for result in Writing(self.engine, denoiser, len(readings), cells, plan).results()]

        return run

    def _fill(
        self, prompts: list[Prompt], pictures: list[list[Any]], scaffold: Scaffold, plan: Plan, *, growth: int = 0, by_first_cell: bool = False,
        denoiser: Denoiser | None = None,
    ) -> list[Result]:  # fmt: skip
        """Fill the slots of a scaffold behind prompts; `by_first_cell`: a slot's box is where its first cell points."""
        filling = Filling(
            self.engine, prompts, pictures, scaffold, plan, growth=growth, by_first_cell=by_first_cell, denoiser=denoiser, calibration=self.calibration
        )
        return filling.results()


def _check_words(words: Any, what: str) -> None:
    if not isinstance(words, str):
        raise PromptError(f"the {what} is a {type(words).__name__}", remedy="give text")
    if not words.strip():
        raise PromptError(f"the {what} is empty", remedy="write one")


def _check_cells(cells: Any) -> None:
    if not isinstance(cells, int) or isinstance(cells, bool) or cells < 1:
        raise OptionError(f"max_new_tokens is {cells!r}", remedy="use an integer of 1 or more")
