"""The copy head's chain of starts, and which slots it links."""

from __future__ import annotations

import torch

from vlm.backbone.copy_head import Chain, CopyHead, CopyHeadConfig, settled
from vlm.backbone.slots import SlotTable, join
from vlm.families.pocket import _before
from vlm.processor.tokenizer import Tokenizer
from vlm.structure.scaffold import compile_scaffold
from vlm.structure.schema import parse_schema


def test_an_item_starts_under_the_one_before_and_nothing_follows_nothing():
    head = CopyHead(8, CopyHeadConfig(key_dim=4))
    logits = torch.zeros(3, 7, requires_grad=True)  # six entries and 'nowhere'
    with torch.no_grad():
        logits[0, 1] = 9.0
    over = torch.tensor([-1, -1, 0, 1, 2, 3])  # two columns
    chain = Chain(torch.tensor([-1, 0, 1]), torch.tensor([1, 2, 3]), over)
    out = head._chained(logits, chain)
    assert out[1].argmax() == 3 and out[2].argmax() == 5
    with torch.no_grad():
        logits[0, 6] = 20.0
    assert head._chained(logits, chain)[1:].argmax(-1).tolist() == [6, 6]
    (grad,) = torch.autograd.grad(head._chained(logits, chain)[2].sum(), logits)
    assert grad[:2].abs().sum() == 0  # an item does not teach the ones before it
    alone = Chain(torch.full((3,), -1), torch.tensor([1, 1, 0]), over)
    assert head._chained(logits, alone) is logits


def test_slots_know_the_slot_of_the_item_before():
    schema = {
        "type": "object", "required": ["rows", "sum"],
        "properties": {
            "rows": {"type": "array", "maxItems": 3, "items": {"type": "object", "properties": {k: {"type": "string", "maxLength": 4} for k in "ab"}, "required": ["a", "b"]}},
            "sum": {"type": "number"},
        },
    }  # fmt: skip
    scaffold = compile_scaffold(parse_schema(schema), Tokenizer.pocket())
    table = SlotTable.of(scaffold)
    names = ["", *(slot.pointer for slot in scaffold.slots)]
    before = {names[i]: names[p] for i, p in enumerate(table.previous.tolist()) if p}
    assert before == {f"/rows/{i}/{k}": f"/rows/{i - 1}/{k}" for i in (1, 2) for k in "ab"}
    both = join([table, table], len(table.slot))
    count = len(names) - 1
    assert both.previous.tolist() == [*table.previous.tolist(), *(p + count if p else 0 for p in table.previous.tolist()[1:])]
    asked = torch.tensor([*range(1, count + 1), *range(count + 1, 2 * count + 1)])
    place = _before(asked, torch.from_numpy(both.previous)[asked])
    assert place.tolist() == [int(p) - 1 if p else -1 for p in both.previous[1:]]


def test_slots_that_would_start_at_one_entry_give_way_to_the_likelier():
    start = torch.tensor([[0.9, 0.05, 0.05], [0.6, 0.02, 0.38], [0.02, 0.9, 0.08]]).log()  # two entries and 'nowhere'
    after = settled(start)
    assert after.exp().sum(-1).allclose(torch.ones(3)) and after.argmax(-1).tolist() == [0, 2, 1]
    torch.testing.assert_close(after[2].exp(), start[2].exp(), atol=0.05, rtol=0)  # who shares a start with nobody keeps it
    twice = torch.tensor([[0.99, 0.005, 0.005], [0.985, 0.005, 0.01]]).log()
    assert settled(twice).argmax(-1).tolist() == [0, 0]  # sure of it both: the same fact under two names
    assert settled(start, 0) is start
