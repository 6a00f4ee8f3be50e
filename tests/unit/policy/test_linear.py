"""Products of bfloat16 matrices with float32 inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vla_rl.policy.activations import SavedBytes
from vla_rl.policy.linear import Linear, compute_in_float32, linear, slow_in_bfloat16


def test_forward_and_gradients_are_those_of_the_float32_product():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator).bfloat16().requires_grad_()
    bias = torch.randn(5, generator=generator, requires_grad=True)
    x = torch.randn(2, 4, 3, generator=generator, requires_grad=True)
    weighting = torch.randn(2, 4, 5, generator=generator)
    y = linear(x, weight, bias)
    expected = F.linear(x, weight.float(), bias)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    got = torch.autograd.grad((y * weighting).sum(), (x, weight, bias))
    want = torch.autograd.grad((expected * weighting).sum(), (x, weight, bias))
    assert [g.dtype for g in got] == [torch.float32, torch.bfloat16, torch.float32]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_equal_dtypes_are_the_plain_product_bit_for_bit():
    x, layer = torch.randn(7, 3), Linear(3, 5)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    half = layer.bfloat16()
    assert torch.equal(half(x.bfloat16()), F.linear(x.bfloat16(), half.weight, half.bias))


def test_autocast_keeps_its_dtype():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Linear(3, 5).bfloat16()(torch.ones(2, 3)).dtype == torch.bfloat16


def test_autograd_keeps_no_copy_of_a_frozen_matrix():
    layer = Linear(64, 128, bias=False).bfloat16().requires_grad_(False)
    x = torch.randn(2, 64, requires_grad=True)
    meter = SavedBytes(layer.parameters())
    with meter.hooks():
        y = layer(x)
    assert meter.peak == 0
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.float().sum(0).expand(2, -1))


def test_matrices_stay_and_vectors_become_float32():
    net = nn.Sequential(Linear(3, 5), nn.LayerNorm(5)).bfloat16()
    compute_in_float32(net)
    assert {name: p.dtype for name, p in net.named_parameters()} == {
        "0.weight": torch.bfloat16,
        "0.bias": torch.float32,
        "1.weight": torch.float32,
        "1.bias": torch.float32,
    }
    assert net(torch.ones(2, 3)).dtype == torch.float32


@pytest.mark.parametrize(("cuda", "products", "slow"), [(0, 0, True), (0, 1, False), (1, 0, False), (1, 1, False)])
def test_only_a_cpu_without_bfloat16_is_slow(monkeypatch, cuda, products, slow):
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bool(products))
    assert slow_in_bfloat16() is slow
