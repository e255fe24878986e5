"""Contract 5, the dense oracle: the chunked head against the plain (tokens, vocabulary) computation."""

import pytest
import torch

from local_distill.logprobs import Head, reverse_kl, sampled_logprobs

N, H, V, ROWS = 23, 8, 50, 57


def inputs(dtype: torch.dtype, bias: bool = False, n: int = N) -> tuple[torch.Tensor, ...]:
    gen = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, H, generator=gen, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(ROWS, H, generator=gen, dtype=torch.float64).to(dtype).requires_grad_()
    offset = torch.randn(ROWS, generator=gen, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    targets = torch.randint(V, (n,), generator=gen)
    upstream = torch.randn(n, generator=gen, dtype=torch.float64)
    return hidden, weight, offset, targets, upstream


def dense(hidden, weight, bias, targets, scale=1.0, softcap=None):
    """The definition, in float64."""
    logits = hidden.double() @ weight[:V].double().t()
    if bias is not None:
        logits = logits + bias[:V].double()
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets]


def gradients(value, upstream, *leaves):
    leaves = [x for x in leaves if x is not None and x.requires_grad]
    return torch.autograd.grad((value.double() * upstream).sum(), leaves)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows_per_chunk", [1, 4, 1000])
def test_values_and_gradients_equal_dense_in_float64(rows_per_chunk, bias, scale, softcap):
    hidden, weight, offset, targets, upstream = inputs(torch.float64, bias)
    head = Head(weight, V, offset, scale, softcap)
    found = sampled_logprobs(hidden, targets, head, logits_per_chunk=rows_per_chunk * V)
    expected = dense(hidden, weight, offset, targets, scale, softcap)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = zip(
        gradients(found, upstream, hidden, weight, offset),
        gradients(expected, upstream, hidden, weight, offset),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_low_precision_stays_near_the_float64_oracle(dtype, tolerance):
    hidden, weight, _, targets, upstream = inputs(dtype)
    found = sampled_logprobs(hidden, targets, Head(weight, V), logits_per_chunk=5 * V)
    expected = dense(hidden, weight, None, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    pairs = zip(gradients(found, upstream, hidden, weight), gradients(expected, upstream, hidden, weight), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < tolerance


def test_padding_rows_of_the_vocabulary_take_no_part():
    hidden, weight, _, targets, upstream = inputs(torch.float64)
    poisoned = weight.detach().clone()
    poisoned[V:] = 1e4
    poisoned.requires_grad_()
    found = sampled_logprobs(hidden, targets, Head(poisoned, V))
    torch.testing.assert_close(found, dense(hidden, weight, None, targets))
    assert gradients(found, upstream, poisoned)[0][V:].abs().max() == 0


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, targets, upstream = inputs(torch.float32)
    found = sampled_logprobs(hidden, targets, Head(weight.detach(), V))
    (grad_hidden,) = gradients(found, upstream, hidden)
    (expected,) = gradients(dense(hidden, weight.detach(), None, targets), upstream, hidden)
    torch.testing.assert_close(grad_hidden, expected, rtol=1e-4, atol=1e-5)


def test_no_positions_give_no_values_and_zero_gradients():
    hidden, weight, _, targets, _ = inputs(torch.float32, n=0)
    found = sampled_logprobs(hidden, targets, Head(weight, V))
    assert found.shape == (0,)
    found.sum().backward()
    assert weight.grad.abs().max() == 0


def test_autocast_decides_the_precision_of_the_matrix_products():
    hidden, weight, _, targets, _ = inputs(torch.float32)
    head = Head(weight, V)
    exact = sampled_logprobs(hidden, targets, head)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sampled_logprobs(hidden, targets, head)
    by_hand = dense(hidden.bfloat16(), weight.bfloat16(), None, targets)
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded.double(), by_hand, rtol=2e-2, atol=2e-2)


def test_nothing_of_tokens_by_vocabulary_is_ever_made():
    """The largest tensor that any operation makes, forward or backward, is a chunk of logits or the head itself."""
    from torch.utils._python_dispatch import TorchDispatchMode

    n, vocab, rows_per_chunk = 640, 500, 16
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    hidden = torch.randn(n, H, requires_grad=True)
    weight = torch.randn(vocab, H, requires_grad=True)
    targets = torch.randint(vocab, (n,))
    with Watch():
        sampled_logprobs(hidden, targets, Head(weight, vocab), logits_per_chunk=rows_per_chunk * vocab).sum().backward()
    assert largest == max(rows_per_chunk * vocab, vocab * H, n * H)


def dense_reverse_kl(hidden, head, teacher_hidden, teacher_head):
    """The definition, in float64, with all logits at once."""

    def logprobs(states, h):
        logits = states.double() @ h.weight[:V].double().t() + (0 if h.bias is None else h.bias[:V].double())
        logits = logits * h.scale
        logits = logits if h.softcap is None else h.softcap * torch.tanh(logits / h.softcap)
        return logits.log_softmax(-1)

    p, q = logprobs(hidden, head), logprobs(teacher_hidden, teacher_head)
    return (p.exp() * (p - q)).sum(-1)


def two_heads(dtype, bias=False, scale=1.0, softcap=None):
    """A student's and a teacher's hidden states and heads, of different widths and paddings."""
    hidden, weight, offset, _, upstream = inputs(dtype, bias)
    gen = torch.Generator().manual_seed(5)
    teacher_hidden = torch.randn(N, 2 * H, generator=gen, dtype=torch.float64).to(dtype)
    teacher_weight = torch.randn(V + 3, 2 * H, generator=gen, dtype=torch.float64).to(dtype)
    return (
        hidden,
        Head(weight, V, offset, scale, softcap),
        teacher_hidden,
        Head(teacher_weight, V, softcap=5.0),
        upstream,
    )


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows_per_chunk", [2, 14, 1000])
def test_reverse_kl_equals_dense_in_float64(rows_per_chunk, bias, scale, softcap):
    hidden, head, teacher_hidden, teacher_head, upstream = two_heads(torch.float64, bias, scale, softcap)
    found = reverse_kl(hidden, head, teacher_hidden, teacher_head, logits_per_chunk=rows_per_chunk * V)
    expected = dense_reverse_kl(hidden, head, teacher_hidden, teacher_head)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert found.min() > 0
    pairs = zip(
        gradients(found, upstream, hidden, head.weight, head.bias),
        gradients(expected, upstream, hidden, head.weight, head.bias),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2), (torch.float16, 1e-2)])
def test_reverse_kl_in_low_precision_stays_near_the_oracle(dtype, tolerance):
    hidden, head, teacher_hidden, teacher_head, upstream = two_heads(dtype)
    found = reverse_kl(hidden, head, teacher_hidden, teacher_head, logits_per_chunk=5 * V)
    expected = dense_reverse_kl(hidden, head, teacher_hidden, teacher_head)
    assert (found.double() - expected).norm() / expected.norm() < tolerance
    pairs = zip(
        gradients(found, upstream, hidden, head.weight), gradients(expected, upstream, hidden, head.weight), strict=True
    )
    for ours, theirs in pairs:
        assert (ours.double() - theirs.double()).norm() / theirs.double().norm() < tolerance


def test_reverse_kl_of_equal_models_is_zero_with_zero_gradient():
    hidden, weight, _, _, upstream = inputs(torch.float32)
    head = Head(weight, V)
    found = reverse_kl(hidden, head, hidden.detach(), Head(weight.detach(), V))
    assert found.abs().max() < 1e-6
    assert max(g.abs().max() for g in gradients(found, upstream, hidden, weight)) < 1e-5


def test_reverse_kl_of_no_positions():
    hidden, weight, _, _, _ = inputs(torch.float32, n=0)
    found = reverse_kl(hidden, Head(weight, V), hidden.detach(), Head(weight.detach(), V))
    found.sum().backward()
    assert found.shape == (0,)
    assert weight.grad.abs().max() == 0
