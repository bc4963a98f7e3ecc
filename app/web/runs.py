"""One way to run a request on every page: stream it, draw each step, stop it, scrub back through it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app.web import draw
from app.web.steps import Snapshot, Trace
from vlm.errors import VLMError
from vlm.results import Result

FRAME = 0.04  # seconds between two pictures of a running canvas
#: Requests to the model wait for each other; all events that compute share this name.
#: A request that was stopped still counts as running in the browser for a moment; unless every click counts, the next one is lost.
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "trigger_mode": "multiple"}
#: Handlers are for this page, not an interface for programs.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """A component that shows a step.

    Attributes:
        draw: gets the snapshot (None: nothing yet) and what the run is about. scrubs: whether it follows the scrubber.
    """

    component: Any
    draw: Callable[[Snapshot | None, Any], Any]
    scrubs: bool = True


#: What a page does with its inputs: what the run is about (a picture, usually) and the stream, or the result of a task without steps.
Start = Callable[..., tuple[Any, "Iterator[Any] | Result"]]


class Runner:
    """Buttons, status line, counters, canvas and scrubber of a page; made inside the layout where they shall stand."""

    def __init__(self, model: Any, name: str, *, label: str = "Run", steps: bool = True) -> None:
        self.model, self.name, self.steps = model, name, steps
        self.trace = gr.State(None, time_to_live=3600)
        with gr.Row():
            self.button = gr.Button(label, variant="primary", elem_id=f"{name}-run", min_width=120)
            self.stop = gr.Button("Stop", elem_id=f"{name}-stop", min_width=80)
        self.status = gr.HTML(draw.status(""), elem_id=f"{name}-status")
        self.panels: list[Panel] = []

    def canvas(self) -> None:
        """Counters, canvas, legend and scrubber, here."""
        counters = gr.HTML(elem_id=f"{self.name}-counters")
        shown = gr.HTML(draw.canvas(None), elem_id=f"{self.name}-canvas")
        self.scrubber = gr.Slider(
            1, 2, value=1, step=1, label="Step", info="Drag, or use the arrow keys, to go back through the run", interactive=False, elem_id=f"{self.name}-step"
        )
        gr.HTML(draw.legend())
        self.panels += [Panel(counters, lambda shot, _: draw.counters(shot)), Panel(shown, lambda shot, _: draw.canvas(shot))]

    def wire(
        self,
        inputs: Sequence[Any],
        start: Start,
        panels: Sequence[Panel],
        *,
        enter: Sequence[Any] = (),
        examples: Sequence[Example] = (),
        fills: Sequence[Any] = (),
    ) -> None:
        """Connect everything.

        Args:
            inputs: components whose values `start` takes. panels: what shows the run. enter: text boxes whose Enter key runs.
            examples: buttons that fill the components `fills` and run.
        """
        self.panels += panels
        outputs = [self.status, self.trace, *([self.scrubber] if self.steps else []), *(panel.component for panel in self.panels)]

        def run(*values: Any) -> Iterator[Any]:
            yield from self.run(start, values)

        common: dict[str, Any] = {"inputs": list(inputs), "outputs": outputs, "show_progress": "hidden", **QUEUE, **PRIVATE}
        events = [self.button.click(run, **common), *(box.submit(run, **common) for box in enter)]
        events += [example.then(fills, run, common) for example in examples]
        self.stop.click(self._stopped, [self.trace], outputs, cancels=events, queue=False, show_progress="hidden", **PRIVATE)
        if self.steps:
            shown = [panel.component for panel in self.panels if panel.scrubs]
            self.scrubber.input(self._scrubbed, [self.scrubber, self.trace], shown, trigger_mode="always_last", queue=False, show_progress="hidden", **PRIVATE)

    def run(self, start: Start, values: Sequence[Any]) -> Iterator[list[Any]]:
        """Output values, time after time, until the request is done or has failed."""
        trace, began, drawn = Trace(), time.perf_counter(), 0.0
        yield self._outputs(draw.status("Working ..."), trace, None)
        try:
            trace.about, parts = start(*values)
            if isinstance(parts, Result):
                trace.keep(parts, (time.perf_counter() - began) * 1000)
                parts = iter(())
            for shot in trace.record(self.model, parts, began):
                if time.perf_counter() - drawn >= FRAME and shot.result is None:
                    drawn = time.perf_counter()
                    yield self._outputs(draw.status(f"Step {shot.step} ..."), trace, shot)
        except VLMError as error:
            yield self._outputs(draw.status(str(error), "alert"), trace, trace.at(len(trace.steps)), last=True)
            return
        except Exception:
            _log.exception("the %s page failed", self.name)
            yield self._outputs(draw.status("Something unexpected went wrong; the server's log says more.", "alert"), trace, None, last=True)
            return
        shot = trace.steps[-1]
        assert shot.result is not None
        yield self._outputs(draw.finished(shot.result), trace, shot, last=True)

    def _outputs(self, status: str, trace: Trace, shot: Snapshot | None, last: bool = False) -> list[Any]:
        scrubber = [self._scrubber(trace, last)] if self.steps else []
        return [status, trace, *scrubber, *(panel.draw(shot, trace.about) for panel in self.panels)]

    @staticmethod
    def _scrubber(trace: Trace, last: bool) -> Any:
        count = len(trace.steps)
        return gr.update(maximum=max(count, 2), value=max(count, 1), interactive=last and count > 1)

    def _stopped(self, trace: Trace | None) -> list[Any]:
        trace = trace or Trace()
        shot = trace.at(len(trace.steps))
        words = f"Stopped after step {shot.step}." if shot is not None else "Stopped."
        return self._outputs(draw.status(words), trace, shot, last=True)

    def _scrubbed(self, place: float, trace: Trace | None) -> list[Any]:
        trace = trace or Trace()
        return [panel.draw(trace.at(place), trace.about) for panel in self.panels if panel.scrubs]


@dataclass(frozen=True)
class Example:
    """A button and the values it fills in."""

    button: Any
    values: tuple[Any, ...]

    def then(self, fills: Sequence[Any], run: Callable[..., Any], common: dict[str, Any]) -> Any:
        """Connect it: fill the components, then run; gives the event of the run."""
        values = list(self.values)
        filled = self.button.click(lambda: values if len(values) > 1 else values[0], None, list(fills), queue=False, show_progress="hidden", **PRIVATE)
        return filled.then(run, **common)
