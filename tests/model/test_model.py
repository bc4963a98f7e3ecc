"""DiffusionVLM on random weights: shapes of results, batches, errors, streams. What it says means nothing here."""

import dataclasses
import json

import jsonschema
import numpy as np
import pytest
from PIL import Image

from vision.reading import Reading
from vision.tokens import THING
from vlm import CheckpointError, ContextLengthError, DiffusionVLM, FieldInfo, ImageNotFoundError, ImagePart, OptionError, PromptError, Result, SchemaError, user
from vlm.grounding.answers import pointed as grounded
from vlm.grounding.answers import widget_around
from vlm.readouts import items_of

SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": ["number", "null"]},
        "paid": {"type": "boolean"},
        "date": {"type": "string", "format": "date"},
        "items": {"type": "array", "maxItems": 2, "items": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}},
    },
    "required": ["total", "paid", "date", "items"],
}


pytestmark = pytest.mark.usefixtures("exact")


@pytest.fixture(scope="module")
def model(tiny):
    return DiffusionVLM.from_pretrained(tiny)


def picture(seed=0, size=(64, 48)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def same(a, b):
    """Equal but for the time they took and tiny differences of confidence."""
    assert (a.text, a.data, a.status, a.box, a.lines, a.warnings) == (b.text, b.data, b.status, b.box, b.lines, b.warnings)
    assert (a.usage.steps, a.usage.forwards, a.usage.tokens) == (b.usage.steps, b.usage.forwards, b.usage.tokens)
    assert a.confidence == pytest.approx(b.confidence, rel=1e-3, abs=1e-6)
    assert {p: (f.value, f.box, f.forced) for p, f in a.fields.items()} == {p: (f.value, f.box, f.forced) for p, f in b.fields.items()}


def test_any_form_of_image(model, tmp_path):
    image = picture()
    image.save(tmp_path / "a.png")
    forms = [str(tmp_path / "a.png"), tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), image, np.asarray(image)]
    first, *others = [model.read(form) for form in forms]
    assert first.text and first.lines and all(line.box[2] > line.box[0] for line in first.lines)
    for other in others:
        same(first, other)


def test_extract_satisfies_the_schema(model):
    results = model.extract([picture(seed) for seed in range(5)], SCHEMA)
    for result in results:
        jsonschema.validate(result.data, SCHEMA)
        assert json.loads(result.text) == result.data
        assert {"/total", "/paid", "/date"} <= set(result.fields)
        assert all(isinstance(f, FieldInfo) and f.pointer == p and 0 <= f.confidence <= 1 for p, f in result.fields.items())
        assert result.status in ("ok", "forced")
        assert 0 < result.usage.steps <= result.usage.forwards <= result.usage.tokens
        assert result.usage.ms > 0
    assert any(f.box is not None for result in results for f in result.fields.values())  # the pointer reaches the page


def test_schema_forms(model):
    @dataclasses.dataclass
    class Receipt:
        total: float
        paid: bool

    for schema in (Receipt, {"total": "number!", "paid": "boolean!"}, '{"total": "number!", "paid": "boolean!"}'):
        assert list(model.extract(picture(), schema).data) == ["total", "paid"]


def test_schema_without_a_free_value(model):
    schema = {"type": "object", "properties": {"kind": {"const": "receipt"}}, "required": ["kind"]}
    result = model.extract(picture(), schema)
    assert result.data == {"kind": "receipt"} and result.usage.forwards == 0 and result.confidence == 1.0


@pytest.mark.parametrize("task", ["caption", "ask", "extract", "ground", "read"])
def test_list_equals_singles(model, task):
    images = [picture(seed, (40 + 24 * seed, 56)) for seed in range(3)]
    call = {
        "caption": lambda x: model.caption(x, max_new_tokens=8), "ask": lambda x: model.ask(x, "who?", max_new_tokens=8),
        "extract": lambda x: model.extract(x, SCHEMA), "ground": lambda x: model.ground(x, "click OK"), "read": model.read,
    }[task]  # fmt: skip
    together = call(images)
    assert isinstance(together, list)
    for image, result in zip(images, together, strict=True):
        same(call(image), result)
    assert call([]) == []
    assert isinstance(call(images[0]), Result)


def test_batches_of_any_size_agree(tiny):
    images = [picture(seed) for seed in range(5)]
    runs = [DiffusionVLM.from_pretrained(tiny) for _ in range(2)]
    runs[0].batch_size, runs[1].batch_size = 2, 5
    for a, b in zip(*[run.caption(images, max_new_tokens=6) for run in runs], strict=True):
        same(a, b)


def test_rows_of_bad_images(model, tmp_path):
    images = [picture(0), tmp_path / "none.png", picture(1), b"", picture(2)]
    rows = model.caption(images, max_new_tokens=4)
    assert [r.status for r in rows] == ["ok", "error", "ok", "error", "ok"]
    assert rows[1].error["type"] == "ImageNotFoundError" and rows[1].error["stage"] == "load" and rows[1].source.endswith("none.png")
    assert rows[3].error["type"] == "ImageTruncatedError"
    assert rows[1].to_dict()["data"] is None
    with pytest.raises(ImageNotFoundError):
        model.caption(images, max_new_tokens=4, on_error="raise")
    with pytest.raises(ImageNotFoundError):
        model.caption(images[1])
    assert model.caption(images[1], on_error="row").status == "error"


def test_a_prompt_too_long_for_one_image_only(model):
    """The picture with more on it does not fit; its neighbours in the batch do."""
    long = "why? " * 150
    small, large = picture(0, (16, 16)), picture(1, (320, 160))
    rows = model.ask([small, large, small], long, max_new_tokens=4)
    assert [r.status for r in rows] == ["ok", "error", "ok"]
    assert rows[1].error["type"] == "ContextLengthError" and rows[1].error["stage"] == "decode"
    with pytest.raises(ContextLengthError, match="1024"):
        model.ask(large, long)


def test_ground(model):
    result = model.ground(picture(3), "click OK")
    assert set(result.data) == {"action", "bbox"} and result.data["action"] in ("click", "type", "hover", "select")
    assert json.loads(result.text) == result.data
    if result.box is None:
        assert result.status == "partial" and result.data["bbox"] is None
    else:
        assert all(0 <= v <= 1000 for v in result.data["bbox"])


def reading_with(things, size=(200, 100)):
    """A reading that holds widgets only."""
    from vision.lines import Detections
    from vision.tokens import Things, assemble

    n = len(things)
    flat = np.zeros(0, np.float32)
    none = Detections(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.int64), np.zeros((0, 4), np.float32), flat, flat, np.zeros(0, np.int64))
    found = Things(np.array(things, np.float32), np.ones(n, np.int64), np.zeros(n, np.int64), np.ones(n, np.float32), np.full(n, -1))
    tokens = assemble(none, found, size, 1)
    assert (tokens.kind == THING).all()
    return Reading(tokens, None, size, 1.0)


def test_grounding_takes_the_smallest_widget_around():
    reading = reading_with([(0, 0, 200, 100), (20, 40, 100, 60), (120, 40, 180, 60)])
    pointed = (50.0, 45.0, 58.0, 55.0)
    assert widget_around(pointed, reading) == (20, 40, 100, 60)
    assert widget_around((500.0, 0.0, 510.0, 9.0), reading) == (500.0, 0.0, 510.0, 9.0)
    fields = {"/action": FieldInfo("click", 0.9, None, False, "/action"), "/target": FieldInfo("button", 0.8, pointed, False, "/target")}
    result = grounded(Result(data={"action": "click", "target": "button"}, fields=fields), reading, [], 0, 0.0)
    assert result.data == {"action": "click", "bbox": [100, 400, 500, 600]} and result.box == (20, 40, 100, 60)
    assert result.confidence == 0.8 and result.status == "ok" and set(result.fields) == {"/action", "/bbox"}
    fields["/target"] = dataclasses.replace(fields["/target"], box=None)
    result = grounded(Result(data={"action": "click", "target": "button"}, fields=fields), reading, [], 0, 0.0)
    assert result.data == {"action": "click", "bbox": None} and result.box is None and result.status == "partial"


def test_objects(model):
    result = items_of(reading_with([(20, 40, 100, 60), (0, 0, 10, 10)]), model.engine.model.config.reader)
    assert [(i.kind, i.color, i.box) for i in result.items] == [("circle", None, (0, 0, 10, 10)), ("circle", None, (20, 40, 100, 60))]
    assert result.text == "circle, circle"
    assert isinstance(model.objects([picture()])[0], Result)


def test_stream_ends_with_what_generate_gives(model):
    messages = [user("what is it?", ImagePart(picture(5)))]
    parts = list(model.stream(messages, max_new_tokens=12, preset="one-by-one"))
    frames, last = parts[:-1], parts[-1]
    assert all(p.result is None for p in frames) and last.result is not None
    assert [p.frame.step for p in frames] == list(range(1, len(frames) + 1))
    assert frames[0].text[0].count("·") >= 11 - 1
    assert len(frames) == last.result[0].usage.steps == last.result[0].usage.forwards
    same(last.result[0], model.generate(messages, max_new_tokens=12, preset="one-by-one"))


def test_generate_many_turns_and_images(model):
    messages = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": [{"type": "image", "image": picture(6)}, {"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "image", "image": picture(7)}, {"type": "text", "text": "and two?"}]},
    ]
    assert model.generate(messages, max_new_tokens=4).usage.tokens <= 4
    assert isinstance(model.generate("no picture at all", max_new_tokens=4).text, str)


def test_pages_of_a_conversation_warn(model, tmp_path):
    picture().save(tmp_path / "two.tiff", save_all=True, append_images=[picture(1)])
    result = model.generate(user("what?", ImagePart(tmp_path / "two.tiff")), max_new_tokens=2)
    assert "two.tiff: has 2 frames or pages; only the first was used" in result.warnings[0]


def test_user_text_never_becomes_control_tokens(model):
    """Mask tokens typed into a question or a schema are neither filled in nor lost."""
    assert model.ask(picture(), "<|mask|><|mask|><|eos|>", max_new_tokens=4).usage.tokens <= 4
    schema = {"type": "object", "properties": {"<|mask|>": {"const": "<|eos|>"}, "b": {"type": "boolean"}}, "required": ["<|mask|>", "b"]}
    result = model.extract(picture(), schema)
    assert list(result.data) == ["<|mask|>", "b"] and result.data["<|mask|>"] == "<|eos|>"


def test_cut_answers_warn(model):
    results = [model.caption(picture(seed), max_new_tokens=3) for seed in range(6)]
    full = [r for r in results if r.usage.tokens == 3]
    assert full and all("may be cut off" in r.warnings[0] for r in full)
    assert all(not r.warnings for r in results if r.usage.tokens < 3)


def test_seeds(model):
    texts = [model.caption(picture(), max_new_tokens=8, temperature=2.0, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.ask(picture(), "  "), PromptError, "empty"),
        (lambda m: m.ask(picture(), None), PromptError, "NoneType"),
        (lambda m: m.ground(picture(), ""), PromptError, "empty"),
        (lambda m: m.caption(picture(), max_new_tokens=0), OptionError, "max_new_tokens"),
        (lambda m: m.caption([picture()], max_new_tokens="8"), OptionError, "max_new_tokens"),
        (lambda m: m.caption(picture(), gama=0.5), OptionError, "did you mean 'gamma'"),
        (lambda m: m.caption(picture(), preset="magic"), OptionError, "magic"),
        (lambda m: m.caption(picture(), seed="x"), OptionError, "seed"),
        (lambda m: m.caption(picture(), on_error="ignore"), OptionError, "on_error"),
        (lambda m: m.caption(picture(), max_new_tokens=2000), ContextLengthError, "1024"),
        (lambda m: m.extract(picture(), "no json"), SchemaError, "JSON"),
        (lambda m: m.extract(picture(), {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}}), SchemaError, "/properties/a/not"),
        (lambda m: m.stream([], max_new_tokens=4), PromptError, "empty"),
        (lambda m: m.stream("hello", max_new_tokens=4, nonsense=1), OptionError, "nonsense"),
        (lambda m: m.stream(user(ImagePart("none.png"))), ImageNotFoundError, "none.png"),
        (lambda m: m.generate("word " * 300), ContextLengthError, "1024"),
    ],
)
def test_wrong_requests(model, call, error, words):
    with pytest.raises(error, match=words):
        call(model)


def test_info(model):
    info = model.info()
    assert info["parameters"]["total"] == sum(v for k, v in info["parameters"].items() if k != "total") > 0
    json.dumps(info)


def test_wrong_loading(tiny, tmp_path):
    with pytest.raises(OptionError, match="device"):
        DiffusionVLM.from_pretrained(tiny, device="tpu")
    with pytest.raises(OptionError, match="dtype"):
        DiffusionVLM.from_pretrained(tiny, dtype="int4")
    with pytest.raises(CheckpointError, match="no such folder"):
        DiffusionVLM.from_pretrained(tmp_path / "none")
