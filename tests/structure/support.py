"""Random schemas, and a little decoding loop that commits whatever it is told, in any order."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from vlm.processor.tokenizer import Tokenizer

POCKET = Tokenizer.pocket()
names = st.one_of(
    st.sampled_from(["a", "b", "total", "x/y", "~", 'q"uote', "<|mask|>", "<|end|>", "é", "line\nbreak"]),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6),
)
words = st.one_of(st.sampled_from(["yes", "no", "<|null|>", "<|pad|>", "é€", 'a"b']), st.text("abc ", max_size=4))


def nullable(schema):
    """Sometimes allow null beside a typed schema."""
    return st.sampled_from([schema, {**schema, "type": [schema["type"], "null"]}, {"anyOf": [schema, {"type": "null"}]}])


def bounds(low, high):
    keys = st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "maximum"), ("minimum", "exclusiveMaximum")])
    return st.builds(lambda k, a, b: {k[0]: min(a, b), k[1]: max(a, b) + 2}, keys, low, high)


ints = st.integers(-2000, 2000)
decimals = st.decimals(-100, 100, places=2).map(float)
leaves = st.one_of(
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(1, 12)),
    st.builds(lambda n, m: {"type": "string", "minLength": n, "maxLength": n + m}, st.integers(0, 4), st.integers(1, 6)),
    st.sampled_from([{"type": "string", "format": f} for f in ("date", "time", "date-time", "email", "uuid", "ipv4")]),
    st.sampled_from(
        [{"type": "string", "pattern": p} for p in (r"^[A-Z]{2}-\d{2,4}$", "ab", r"^(?:cat|dog)s?$", r"[0-9]+$", r"^\w+\s\w")]
    ),
    st.just({"type": "boolean"}),
    st.just({"type": "integer"}),
    st.just({"type": "number"}),
    bounds(ints, ints).map(lambda b: {"type": "integer", **b}),
    bounds(decimals, decimals).map(lambda b: {"type": "number", **b}),
    st.integers(2, 60).map(lambda m: {"type": "integer", "multipleOf": m}),
).flatmap(nullable)
listed = st.one_of(
    st.lists(words, min_size=1, max_size=4, unique=True).map(lambda v: {"enum": v}),
    st.lists(st.one_of(words, st.none()), min_size=2, max_size=4, unique=True).map(lambda v: {"enum": v}),
    st.just({"enum": [1, 2.5, True, None]}),
    st.one_of(words, st.none(), st.integers(), st.just({"k": [1]})).map(lambda v: {"const": v}),
)


def objects(children):
    def build(properties, data, null):
        required = [name for index, name in enumerate(properties) if data >> index & 1]
        return {"type": ["object", "null"] if null else "object", "properties": properties, "required": required}

    return st.builds(
        build, st.dictionaries(names, children, min_size=1, max_size=4), st.integers(0, 15), st.booleans()
    )


def arrays(children):
    return st.builds(
        lambda item, low, more, null: {
            "type": ["array", "null"] if null else "array", "items": item, "minItems": low, "maxItems": low + more,
        },
        children, st.integers(0, 2), st.integers(0, 2), st.booleans(),
    )  # fmt: skip


schemas = st.recursive(
    st.one_of(leaves, listed), lambda children: st.one_of(objects(children), arrays(children)), max_leaves=5
)
roots = objects(schemas).map(lambda schema: {**schema, "type": "object"})


@dataclass
class Canvas:
    """The two tensors the engine reads."""

    ids: torch.Tensor
    masked: torch.Tensor


def start(scaffolds):
    """A canvas of ragged rows: padding cells are not masked."""
    rows = [scaffold.to_canvas_rows() for scaffold in scaffolds]
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    masked = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        masked[index, : len(row.ids)] = torch.tensor(row.masked)
    return Canvas(ids, masked)


def decode(engine, canvas, generator, *, scale=3.0, share=0.4, remask=0.0, window=1.0, vocab=416):
    """Commit random cells of random logits until none is masked; returns confidences [B, L]."""
    confidence = torch.ones(canvas.ids.shape)
    free = canvas.masked.clone()
    for step in range(1000):
        if not canvas.masked.any():
            return confidence
        cells = canvas.masked & (torch.rand(canvas.ids.shape, generator=generator) < window)
        if not cells.any():
            cells = canvas.masked
        logits = torch.randn(int(cells.sum()), vocab, generator=generator) * scale
        ids, score = engine.propose(canvas, cells, logits)
        assert ids.shape == score.shape == (int(cells.sum()),)
        assert bool(((score >= 0) & (score <= 1)).all())
        kept = engine(canvas, cells, logits)
        assert bool((kept.gather(1, ids[:, None]) > -torch.inf).all())  # the joint proposal is allowed cell by cell
        take = torch.rand(ids.shape, generator=generator) < share
        take[int(torch.randint(len(ids), (1,), generator=generator))] = True
        where = cells.nonzero()[take]
        canvas.ids[where[:, 0], where[:, 1]] = ids[take]
        canvas.masked[where[:, 0], where[:, 1]] = False
        confidence[where[:, 0], where[:, 1]] = score[take]
        if remask and step < 30:
            back = free & ~canvas.masked & (torch.rand(free.shape, generator=generator) < remask)
            canvas.masked |= back
    raise AssertionError("did not end")
