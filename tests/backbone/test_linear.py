"""Linear maps whose rows are filled up: the same to the bit, in few shapes."""

import pytest
import torch

from kernels.linear import Linear, filled, linear


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 63, 64, 65, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_rows_are_the_same_to_the_bit(rows, bias):
    torch.manual_seed(rows)
    layer = Linear(48, 80, bias=bias).to(torch.bfloat16)
    x = torch.randn(2, rows, 48).bfloat16()
    with torch.inference_mode():
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        assert layer(x).shape == (2, rows, 80) and linear(x[0, 0], layer.weight).shape == (80,)


def test_few_numbers_of_rows():
    assert len({filled(n) for n in range(1, 6401)}) == 4 + 99
    assert all(n <= filled(n) < max(9, 2 * n) and filled(n) - n < 64 for n in range(1, 1000))


def test_gradients_and_float32_go_the_plain_way():
    layer = Linear(8, 4)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(3, 8))
    assert linear(torch.zeros(0, 8).bfloat16(), layer.weight.bfloat16()).shape == (0, 4)


def test_attention_of_rows_in_bf16_without_gradients_is_fused_and_close():
    from kernels.ragged_attention import ragged_attention, ragged_attention_reference

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 12, 16).bfloat16() for _ in range(3))
    past = (torch.randn(2, 9, 16).bfloat16(), torch.randn(2, 9, 16).bfloat16())
    spans = [((0, 5), (0, 5), (0, 4)), ((5, 6), (5, 6), (4, 4)), ((6, 12), (6, 12), (2, 9))]
    with torch.inference_mode():
        fused = ragged_attention(q, k, v, spans, past)
    expected = ragged_attention_reference(*(t.double() for t in (q, k, v)), spans, tuple(t.double() for t in past))
    assert fused.shape == q.shape and float((fused.double() - expected).abs().max()) < 0.03
