"""Free text: a batch of canvases of open cells behind encoded prompts, up to the end token of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from vlm.decoding.canvas import Canvas
from vlm.decoding.contracts import Denoiser
from vlm.decoding.loop import Frame, decode
from vlm.decoding.stops import EndOfText, Never
from vlm.engine import Engine, Plan
from vlm.live import Partial, text_so_far
from vlm.results import Result, Usage


class Writing:
    """B rows of free text; the counterpart of :class:`vlm.filling.Filling`.

    Args:
        engine: knows the tokens that end a text. denoiser: behind the prompts. rows: B. cells: of each canvas. plan: how.
    """

    def __init__(self, engine: Engine, denoiser: Denoiser, rows: int, cells: int, plan: Plan) -> None:
        self.engine, self.denoiser, self.rows, self.plan = engine, denoiser, rows, plan
        self.canvas = Canvas.blank(rows, cells, mask_id=engine.symbols.mask, pad_id=engine.symbols.pad)
        self._start = time.perf_counter()

    def frames(self) -> Iterator[Frame]:
        """Decode, a frame per step."""
        recipe = self.plan.recipe
        stop = EndOfText(self.engine.stop_ids) if isinstance(recipe.stop, Never) else recipe.stop
        yield from decode(self.denoiser, self.canvas, recipe.with_parts(banned=self.engine.banned(self.plan, None), stop=stop), seed=self.plan.seed)

    def results(self) -> list[Result]:
        """Decode to the end; one result a row."""
        for _ in self.frames():
            pass
        return self._results()

    def stream(self, finish: Callable[[Result], Result]) -> Iterator[Partial]:
        """Decode, a Partial per step; the last one carries the results as `finish` gives them."""
        tokenizer, stops = self.engine.tokenizer, self.engine.stop_ids
        for frame in self.frames():
            rows = zip(frame.ids.tolist(), frame.state.tolist(), strict=True)
            yield Partial(frame, [text_so_far(tokenizer, ids, state, stops) for ids, state in rows])
        results = [finish(result) for result in self._results()]
        canvas = self.canvas
        yield Partial(Frame.of(canvas, int(canvas.step.max()), canvas.masked), [result.text for result in results], results)

    def _results(self) -> list[Result]:
        ms = (time.perf_counter() - self._start) * 1000 / self.rows
        return [self._result(row, ms) for row in range(self.rows)]

    def _result(self, row: int, ms: float) -> Result:
        canvas, stops, tokenizer = self.canvas, self.engine.stop_ids, self.engine.tokenizer
        ids = canvas.ids[row].tolist()
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        sure = canvas.commit_confidence[row, : min(end + 1, len(ids))]
        kept = [i for i in ids[:end] if i not in tokenizer.control_ids]
        usage = Usage(int(canvas.step[row]), int(canvas.forwards[row]), end, ms)
        cut = () if end < len(ids) else (f"the answer filled all {end} cells and may be cut off; raise max_new_tokens",)
        return Result(tokenizer.decode(kept).strip(), confidence=float(sure.prod()), warnings=cut, usage=usage)
