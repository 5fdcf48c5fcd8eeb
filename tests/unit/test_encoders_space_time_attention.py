"""Attention over the tokens of a clip: what defines it, how the kinds differ, and what the approximations keep."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders import (
    DividedAttention,
    JointAttention,
    TrajectoryAttention,
    count_macs,
    iterative_pinv,
    most_orthogonal_subset,
    nystrom_attention,
    orthoformer_attention,
    orthogonal_projection,
    performer_attention,
    random_subset,
    seeded_init,
    segment_means,
    trajectory_attention,
)

T, S, D, HEADS = 3, 5, 12, 2
N = T * S


def layer(kind: type = TrajectoryAttention, dim: int = D, heads: int = HEADS, **options: object) -> nn.Module:
    with seeded_init(0):
        return kind(dim, heads, **options).double()


def tokens(batch: int = 2, frames: int = T, space: int = S, dim: int = D, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1 + frames * space, dim, generator=generator).double()


def same(found: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def by_definition(module: TrajectoryAttention, x: Tensor, frames: int) -> Tensor:
    """Eqs. 4 to 6 for one query after the other."""
    batch, heads, d = len(x), module.heads, module.dim // module.heads
    q, k, v = module.queries_keys_values(x)
    rows = [torch.einsum("bhn,bhnd->bhd", torch.softmax(q[:, :, 0, None] @ k.mT / d**0.5, -1)[:, :, 0], v).flatten(1)]
    space = (x.shape[1] - 1) // frames
    k, v = (y[:, :, 1:].unflatten(2, (frames, space)) for y in (k, v))
    for i in range(frames * space):
        logits = torch.einsum("bhd,bhtsd->bhts", q[:, :, 1 + i], k) / d**0.5
        if module.normalise == "space":
            a = logits.softmax(-1)
        else:
            a = logits.flatten(2).softmax(-1).unflatten(2, (frames, space))
        y = torch.einsum("bhts,bhtsd->bthd", a, v).flatten(2)  # (B, T, D)
        if module.temporal == "average":
            rows.append(y.mean(1))
            continue
        new_q = module.trajectory_q(y[:, i // space]).unflatten(1, (heads, d))
        new_k, new_v = module.trajectory_kv(y).unflatten(2, (2, heads, d)).unbind(2)
        new_v = new_v if module.value_proj else y.unflatten(2, (heads, d))
        w = (torch.einsum("bhd,bthd->bht", new_q, new_k) / d**0.5).softmax(-1)
        rows.append(torch.einsum("bht,bthd->bhd", w, new_v).reshape(batch, -1))
    return module.out(torch.stack(rows, dim=1))


# --- the fast implementation is the definition -----------------------------------------------------------------------

OPTIONS = [
    {"value_proj": True},
    {"value_proj": False},
    {"qkv_bias": False},
    {"normalise": "spacetime"},
    {"temporal": "average"},
    {"normalise": "spacetime", "temporal": "average", "value_proj": False},
]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_definition_with_gradients(options: dict, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory_attention, "PART_ROWS", 2 * 2 * S)  # two frames of two clips, then the last frame
    module = layer(**options, recompute=recompute)
    x = tokens().requires_grad_()
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    out, expected = module(x, T), by_definition(module, x, T)
    same(out, expected)
    gradients = torch.autograd.grad(out, wanted, cotangent)
    for gradient, other in zip(
        gradients, torch.autograd.grad(expected, wanted, cotangent, allow_unused=True), strict=True
    ):
        same(gradient, torch.zeros_like(gradient) if other is None else other)
    with torch.no_grad():
        same(module(x, T), expected)


def saved_for_backward(module: nn.Module, x: Tensor, frames: int) -> list[Tensor]:
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x.requires_grad_(), frames).sum().backward()
    return list(kept.values())


def test_memory_grows_with_the_tokens_and_not_with_their_square() -> None:
    module = layer(recompute=True)
    sizes = []
    for space in (16, 32, 64):
        kept = saved_for_backward(module, tokens(1, 4, space), 4)
        assert all(t.untyped_storage().nbytes() < 8 * (4 * space) ** 2 * HEADS for t in kept)
        sizes.append(sum(t.untyped_storage().nbytes() for t in kept))
    assert sizes[1] / sizes[0] < 2.1 and sizes[2] / sizes[1] < 2.1


def test_kept_or_recomputed_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    real = trajectory_attention.checkpoint
    monkeypatch.setattr(trajectory_attention, "checkpoint", lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    module, x = layer(), tokens()
    small = module(x, T)
    assert not calls
    monkeypatch.setattr(trajectory_attention, "KEEP_BYTES", 0)
    monkeypatch.setattr(trajectory_attention, "PART_ROWS", 1)
    same(module(x, T), small)
    assert len(calls) == T


# --- the seven invariants --------------------------------------------------------------------------------------------


def test_weights_of_a_frame_sum_to_one() -> None:
    maps = layer().attention_maps(tokens(), T)
    assert maps.space.shape == (2, HEADS, N, T, S)
    assert maps.space.min() > 0
    same(maps.space.sum(-1), torch.ones(2, HEADS, N, T).double())
    same(maps.time.sum(-1), torch.ones(2, HEADS, N).double())
    joint = layer(normalise="spacetime").attention_maps(tokens(), T)
    same(joint.space.sum((-1, -2)), torch.ones(2, HEADS, N).double())
    assert (joint.space.sum(-1) - 1 / T).abs().max() > 0.01  # not frame by frame


def test_joint_attention_is_trajectories_weighted_by_their_mass() -> None:
    module, x = layer(), tokens()
    q, k, v = (y[:, :, 1:] for y in module.queries_keys_values(x))
    joint = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    logits = (q @ k.mT * q.shape[3] ** -0.5).unflatten(3, (T, S))
    mass = logits.logsumexp(-1).softmax(-1)  # (B, h, N, T)
    trajectories = module.attention_maps(x, T).tokens.unflatten(3, (HEADS, -1))
    same(torch.einsum("bhnt,bnthd->bnhd", mass, trajectories).flatten(2), joint)
    partial = layer(normalise="spacetime").attention_maps(x, T).tokens
    same(partial.sum(2), joint)


def test_one_frame_is_attention_over_space_and_one_place_is_attention_over_time() -> None:
    module, x = layer(), tokens(frames=1, space=N)
    q, k, v = (y[:, :, 1:] for y in module.queries_keys_values(x))
    space = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    value = module.trajectory_kv(space)[..., D:]
    same(module(x, 1)[:, 1:], module.out(value))
    x = tokens(frames=N, space=1)
    v = module.queries_keys_values(x)[2][:, :, 1:].transpose(1, 2).flatten(2)  # (B, N, D)
    same(module.attention_maps(x, N).tokens, v.unsqueeze(1).expand(-1, N, -1, -1))


def shuffled(x: Tensor, order: Tensor) -> Tensor:
    """Patches in another order, the class token where it was."""
    return torch.cat([x[:, :1], x[:, 1:][:, order]], dim=1)


def test_places_of_each_frame_can_be_shuffled_apart_but_not_for_divided_attention() -> None:
    generator = torch.Generator().manual_seed(3)
    order = torch.cat([t * S + torch.randperm(S, generator=generator) for t in range(T)])
    x = tokens()
    for module in (layer(), layer(normalise="spacetime"), layer(JointAttention), layer(DividedAttention, axis="space")):
        same(module(shuffled(x, order), T), shuffled(module(x, T), order))
    time = layer(DividedAttention, axis="time")
    assert (time(shuffled(x, order), T) - shuffled(time(x, T), order)).abs().max() > 0.01
    alike = torch.cat([t * S + torch.arange(S).flip(0) for t in range(T)])
    same(time(shuffled(x, alike), T), shuffled(time(x, T), alike))


def test_frames_can_be_shuffled() -> None:
    order = torch.arange(N).unflatten(0, (T, S))[torch.tensor([2, 0, 1])].flatten()
    x = tokens()
    for module in (layer(), layer(temporal="average"), layer(DividedAttention, axis="time")):
        same(module(shuffled(x, order), T), shuffled(module(x, T), order))


def test_without_a_query_time_is_averaged() -> None:
    module, x = layer(), tokens()
    nn.init.zeros_(module.trajectory_q.weight)
    nn.init.zeros_(module.trajectory_q.bias)
    mean = module.trajectory_kv(module.attention_maps(x, T).tokens)[..., D:].mean(2)
    same(module(x, T)[:, 1:], module.out(mean))


def test_attention_follows_contents_that_move() -> None:
    """Every content is in another place in every frame; the weights find it."""
    generator = torch.Generator().manual_seed(4)
    places = torch.stack([torch.randperm(S, generator=generator) for _ in range(T)])  # (T, S): content at a place
    module = layer(dim=S, heads=1, qkv_bias=False)
    with torch.no_grad():
        module.qkv.weight.copy_(torch.cat([30 * torch.eye(S), torch.eye(S), torch.eye(S)]))
    x = torch.cat([torch.zeros(1, 1, S), torch.eye(S)[places].flatten(0, 1).unsqueeze(0)], dim=1).double()
    found = module.attention_maps(x, T).space[0, 0].argmax(-1)  # (N, T)
    where = places.argsort(dim=1)  # (T, content): its place
    assert torch.equal(found, where[:, places.flatten()].T)


# --- readings, ablations, precision ----------------------------------------------------------------------------------


def test_value_projection() -> None:
    module, x = layer(), tokens()
    released = layer(value_proj=False)
    assert (module(x, T) - released(x, T)).abs().max() > 0.01
    with torch.no_grad():
        module.trajectory_kv.weight[D:] = torch.eye(D)
        module.trajectory_kv.bias[D:] = 0
    same(module(x, T), released(x, T))
    released(x, T).sum().backward()
    assert released.trajectory_kv.weight.grad[D:].abs().max() == 0
    assert released.trajectory_kv.weight.grad[:D].abs().max() > 0
    assert not released.trajectory_kv.bias.requires_grad  # neither half has an effect


def test_the_key_bias_cancels_and_the_value_bias_comes_once() -> None:
    module, x = layer(), tokens()
    before = module(x, T)
    with torch.no_grad():
        module.trajectory_kv.bias[:D] += 3
        same(module(x, T), before)
        module.trajectory_kv.bias[D:] += 3
    shift = module.out(torch.full((D,), 3.0).double()) - module.out.bias
    same(module(x, T)[:, 1:], before[:, 1:] + shift)
    same(module(x, T)[:, :1], before[:, :1])


def test_average_has_no_second_projections() -> None:
    module = layer(temporal="average")
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"qkv", "out"}
    x = tokens()
    same(module(x, T)[:, 1:], module.out(module.attention_maps(x, T).tokens.mean(2)))
    same(module.attention_maps(x, T).time, torch.full((2, HEADS, N, T), 1 / T, dtype=torch.float64))


def test_patches_do_not_see_the_class_token_but_it_sees_them() -> None:
    x = tokens()
    other = torch.cat([x[:, :1] + 1, x[:, 1:]], dim=1)
    module = layer()
    same(module(x, T)[:, 1:], module(other, T)[:, 1:])
    for kind, options in ((JointAttention, {}), (DividedAttention, {"axis": "time"}), (DividedAttention, {})):
        module = layer(kind, **options)
        assert (module(x, T)[:, 1:] - module(other, T)[:, 1:]).abs().max() > 1e-3
    changed = x.clone()
    changed[:, -1] += 1
    for kind in (TrajectoryAttention, JointAttention, DividedAttention):
        assert (layer(kind)(x, T)[:, 0] - layer(kind)(changed, T)[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"normalise": "spacetime"}, {"approx": "orthoformer", "num_prototypes": 4}])
def test_half_precision_keeps_the_softmax_in_float32(options: dict) -> None:
    module, x = layer(**options, recompute=True).float(), tokens().float().requires_grad_()
    expected = module(x, T)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, T)
        maps = module.attention_maps(x, T)
    assert out.dtype == torch.bfloat16 and maps.time.dtype == torch.float32
    # Sums of weights that had been rounded to bfloat16 would be off by 1e-3.
    torch.testing.assert_close(maps.time.sum(-1), torch.ones(2, HEADS, N), rtol=0, atol=1e-6)
    assert (out.float() - expected).norm() / expected.norm() < 0.03
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    (half,) = torch.autograd.grad(out.float().sum(), x)
    assert (half - gradient).norm() / gradient.norm() < 0.1


def test_large_logits_stay_finite() -> None:
    module, x = layer().float(), 1e4 * tokens().float()
    assert module(x.requires_grad_(), T).isfinite().all()
    module(x, T).sum().backward()
    assert x.grad.isfinite().all()


def test_maps_of_some_queries() -> None:
    module, x, wanted = layer(), tokens(), torch.tensor([7, 0, 14])
    some, every = module.attention_maps(x, T, queries=wanted), module.attention_maps(x, T)
    same(some.space, every.space[:, :, wanted])
    same(some.time, every.time[:, :, wanted])
    same(some.tokens, every.tokens[:, wanted])


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "5 heads for dim 12"),
        ({"normalise": "time"}, "unknown normalise 'time'"),
        ({"temporal": "max"}, "unknown temporal 'max'"),
        ({"approx": "linformer"}, "unknown approx 'linformer'"),
        ({"selection": "best"}, "unknown selection 'best'"),
        ({"candidates": "keys"}, "unknown candidates 'keys'"),
        ({"approx": "nystrom", "normalise": "spacetime"}, "use it with normalise='space'"),
        ({"per_frame": True}, "per_frame is for approx='orthoformer', got approx=None"),
        ({"num_prototypes": 0}, "num_prototypes must be positive, got 0"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**options)


@pytest.mark.parametrize("kind", [TrajectoryAttention, JointAttention, DividedAttention])
def test_bad_tokens(kind: type) -> None:
    module = layer(kind)
    with pytest.raises(ValueError, match="16 tokens are not one class token and 4 frames"):
        module(tokens(), 4)
    with pytest.raises(ValueError, match=r"expected tokens \(B, 1 \+ T \* S, 12\), got shape \(2, 16, 8\)"):
        module(tokens(dim=8), T)
    with pytest.raises(ValueError, match="unknown axis 'width'"):
        DividedAttention(D, HEADS, axis="width")


def test_bad_prototypes() -> None:
    x, index = tokens(), torch.zeros(2, HEADS, 4, dtype=torch.int64)
    module = layer(approx="orthoformer", num_prototypes=4)
    with pytest.raises(ValueError, match="this module is exact"):
        layer()(x, T, prototype_index=index)
    with pytest.raises(ValueError, match=r"for \(B, h\) = \(2, 2\), got \(1, 2, 4\)"):
        module(x, T, prototype_index=index[:1])
    with pytest.raises(ValueError, match=r"must lie in \[0, 15\), got 15 to 15"):
        module(x, T, prototype_index=index + N)
    with pytest.raises(ValueError, match="and frame"):
        layer(approx="orthoformer", num_prototypes=4, per_frame=True)(x, T, prototype_index=index)
    with pytest.raises(ValueError, match="got one for approx='nystrom'"):
        layer(approx="nystrom", num_prototypes=4)(x, T, prototype_index=index)


def test_more_prototypes_than_tokens_are_all_tokens() -> None:
    """As released: small clips do not fail, and approximate by all there is."""
    x = torch.randn(2, 1 + N, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many, all_of_them = (layer(approx="orthoformer", num_prototypes=number) for number in (N + 1, N))
    all_of_them.load_state_dict(many.state_dict())
    torch.testing.assert_close(many(x, T), all_of_them(x, T), rtol=0, atol=1e-6)


# --- prototypes ------------------------------------------------------------------------------------------------------


def vectors(batch: int = 3, n: int = 30, d: int = 6, *, seed: int = 5) -> Tensor:
    return torch.randn(batch, n, d, generator=torch.Generator().manual_seed(seed))


def greedy(x: Tensor, num: int, first: int) -> list[int]:
    """The rule, one row after the other."""
    unit = F.normalize(x.double(), dim=1)
    taken = [first]
    while len(taken) < num:
        worst = (unit @ unit[taken].T).abs().amax(dim=1)
        worst[taken] = 2
        taken.append(int(worst.argmin()))
    return taken


def test_orthogonal_subset_follows_the_rule() -> None:
    x = vectors()
    first = torch.tensor([4, 0, 29])
    found = most_orthogonal_subset(x, 8, first=first)
    assert found.tolist() == [greedy(each, 8, int(i)) for each, i in zip(x, first, strict=True)]
    assert most_orthogonal_subset(x, 8)[:, 0].tolist() == [0, 0, 0]
    every = most_orthogonal_subset(x, 30)
    assert torch.equal(every.sort().values, torch.arange(30).expand(3, -1))  # no row twice


def test_orthogonal_subset_sees_lines_only() -> None:
    x = vectors()
    generator = torch.Generator().manual_seed(6)
    scale = (0.1 + torch.rand(3, 30, 1, generator=generator)) * torch.randn(3, 30, 1, generator=generator).sign()
    assert torch.equal(most_orthogonal_subset(x, 6), most_orthogonal_subset(scale * x, 6))


def test_orthogonal_subset_takes_one_of_each_cluster_and_parallels_last() -> None:
    generator = torch.Generator().manual_seed(7)
    kinds = torch.arange(5).repeat_interleave(4)[torch.randperm(20, generator=generator)]
    factor = torch.rand(20, 1, generator=generator) + 0.5
    x = (factor * (-1) ** torch.arange(20).unsqueeze(1) * torch.eye(5)[kinds]).unsqueeze(0)
    order = most_orthogonal_subset(x, 20)[0]
    assert sorted(kinds[order[:5]].tolist()) == [0, 1, 2, 3, 4]
    # The seven that are left of a mixed set are copies of what was taken.
    mixed = torch.cat([x, vectors(1, 10, 5)], dim=1)
    taken = most_orthogonal_subset(mixed, 15)[0]
    unit = F.normalize(mixed[0][taken], dim=1)
    assert ((unit @ unit.T).abs() - torch.eye(15)).max() < 0.9999


def test_orthogonal_subset_of_candidates_and_draws() -> None:
    x, candidates = vectors(), torch.tensor([3, 9, 10, 21, 28])
    found = most_orthogonal_subset(x, 3, candidates=candidates)
    assert torch.equal(found, candidates[most_orthogonal_subset(x[:, candidates], 3)])
    draws = [most_orthogonal_subset(x, 3, generator=torch.Generator().manual_seed(s))[:, 0].tolist() for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ValueError, match="cannot take 6 prototypes from 5 tokens"):
        most_orthogonal_subset(x, 6, candidates=candidates)
    with pytest.raises(ValueError, match=r"expected vectors \(B, n, d\), got shape \(30, 6\)"):
        most_orthogonal_subset(x[0], 3)


def test_random_subset() -> None:
    found = random_subset(vectors(), 12, generator=torch.Generator().manual_seed(0))
    assert found.shape == (3, 12) and all(len(set(row)) == 12 for row in found.tolist())
    assert len({tuple(row) for row in found.tolist()}) == 3
    assert torch.equal(found, random_subset(vectors(), 12, generator=torch.Generator().manual_seed(0)))


def test_segment_means() -> None:
    x = torch.arange(12.0).unsqueeze(1)  # three frames of four places
    assert segment_means(x, 4).flatten().tolist() == [1, 4, 7, 10]
    assert segment_means(x, 4, num_frames=3, order="space").flatten().tolist() == [4, 5, 6, 7]  # a place each
    assert segment_means(x, 5).flatten().tolist() == [0.5, 2.5, 4.5, 7, 10]  # 2, 2, 2, 3, 3
    with pytest.raises(ValueError, match="12 tokens do not form 5 frames"):
        segment_means(x, 4, num_frames=5)
    with pytest.raises(ValueError, match="cannot take 13 prototypes from 12 tokens"):
        segment_means(x, 13)


# --- approximate attention -------------------------------------------------------------------------------------------


def qkv(n: int = 24, d: int = 8, *, seed: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, n, d, generator=generator).double() for _ in range(3))


def test_orthoformer_is_a_product_of_two_attentions() -> None:
    q, k, v = qkv()
    p = q[:, :5]
    weights = (q @ p.mT / 8**0.5).softmax(-1) @ (p @ k.mT / 8**0.5).softmax(-1)
    same(weights.sum(-1), torch.ones(2, 24).double())
    same(orthoformer_attention(q, k, v, p), weights @ v)
    one = orthoformer_attention(q, k, v, p[:, :1])
    same(one, one[:, :1].expand(-1, 24, -1))  # one prototype: all queries alike
    exact = F.scaled_dot_product_attention(q, k, v)
    assert (orthoformer_attention(q, k, v, q) - exact).norm() / exact.norm() > 0.1  # biased even with all tokens
    framed = orthoformer_attention(q, k, v, p, num_frames=3)
    for t in range(3):
        here = slice(8 * t, 8 * t + 8)
        same(framed[:, :, t], orthoformer_attention(q, k[:, here], v[:, here], p))


def test_no_gradient_goes_through_prototypes() -> None:
    module = layer(approx="orthoformer", num_prototypes=4)
    index = torch.arange(4).expand(2, HEADS, 4)
    x = tokens()
    module(x, T, prototype_index=index).sum().backward()
    found = module.qkv.weight.grad
    q, k, v = (y[:, :, 1:].flatten(0, 1) for y in module.queries_keys_values(x))
    assert module.approx is not None
    attached = orthoformer_attention(q, k, v, q[:, :4], num_frames=T)
    detached = orthoformer_attention(q, k, v, q[:, :4].detach(), num_frames=T)
    stage = module.approx.tokens(q, k, v, T, index=index.flatten(0, 1))(q).permute(2, 1, 0, 3)
    ours, with_it, without = (
        torch.autograd.grad(y.square().sum(), module.qkv.weight, retain_graph=True)[0]
        for y in (stage, attached, detached)
    )
    same(ours, without)
    assert (ours - with_it).abs().max() > 1e-3 and found.isfinite().all()


def test_nystrom_is_exact_with_all_tokens_and_a_converged_inverse() -> None:
    q, k, v = qkv()
    exact = F.scaled_dot_product_attention(q, k, v)
    same(nystrom_attention(q, k, v, q, k, iterations=60), exact, atol=1e-6)
    rough = nystrom_attention(q, k, v, segment_means(q, 4), segment_means(k, 4))
    assert (rough - exact).norm() / exact.norm() > 0.1


def test_iterative_inverse() -> None:
    generator = torch.Generator().manual_seed(9)
    a = torch.randn(3, 6, 6, generator=generator).double() + 4 * torch.eye(6)
    same(iterative_pinv(a, 25, init="general"), torch.linalg.inv(a), atol=1e-8)
    rows = torch.softmax(torch.randn(3, 6, 6, generator=generator).double() + 4 * torch.eye(6), -1)
    for init in ("exact", "global"):
        same(iterative_pinv(rows, 25, init=init), torch.linalg.inv(rows), atol=1e-8)
    with pytest.raises(ValueError, match="unknown start 'zero'"):
        iterative_pinv(a, init="zero")
    with pytest.raises(ValueError, match=r"got torch.bfloat16; convert them with .float\(\)"):
        iterative_pinv(a.bfloat16())


def test_performer_converges_like_the_root_of_its_features() -> None:
    q, k, v = (x / 2 for x in qkv())
    exact = F.scaled_dot_product_attention(q, k, v)

    def error(features: int) -> float:
        found = []
        for seed in range(10):
            w = orthogonal_projection(features, 8, generator=torch.Generator().manual_seed(seed)).double()
            found.append(((performer_attention(q, k, v, w) - exact).norm() / exact.norm()).item())
        return sum(found) / len(found)

    assert error(64) < 0.2
    assert 2.5 < error(64) / error(1024) < 6  # 4 by the law
    w = orthogonal_projection(32, 8, generator=torch.Generator().manual_seed(0)).double()
    framed = performer_attention(q, k, v, w, num_frames=3)
    same(framed[:, :, 1], performer_attention(q, k[:, 8:16], v[:, 8:16], w), atol=1e-4)  # apart from the stabiliser


def test_random_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_ones() -> None:
    w = orthogonal_projection(20, 8, generator=torch.Generator().manual_seed(0))
    for block in (w[:8], w[8:16], w[16:]):
        gram = block @ block.T
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-4)
    many = orthogonal_projection(4000, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.T @ many / 4000, torch.eye(8), rtol=0, atol=0.1)


APPROXIMATIONS = [
    {"approx": "orthoformer"},
    {"approx": "orthoformer", "selection": "random"},
    {"approx": "orthoformer", "selection": "segment-means"},
    {"approx": "orthoformer", "candidates": "both"},
    {"approx": "orthoformer", "candidates": "both", "selection": "segment-means"},
    {"approx": "orthoformer", "per_frame": True},
    {"approx": "orthoformer", "per_frame": True, "selection": "segment-means"},
    {"approx": "nystrom"},
    {"approx": "performer"},
]


@pytest.mark.parametrize("options", APPROXIMATIONS)
def test_approximate_layers(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    x = tokens()
    module = layer(**options, num_prototypes=4)
    out = module(x, T)
    same(module(x, T), out)  # a function of its input
    maps = module.attention_maps(x, T)
    same(maps.space.sum(-1), torch.ones(2, HEADS, N, T).double(), atol=0.05 if options["approx"] == "nystrom" else 1e-9)
    again = layer(**options, num_prototypes=4, recompute=True)
    monkeypatch.setattr(trajectory_attention, "PART_ROWS", 1)
    same(again(x, T), out)
    wanted = list(module.parameters())
    others = list(again.parameters())
    gradients = torch.autograd.grad(module(x, T).square().sum(), wanted)
    for a, b in zip(gradients, torch.autograd.grad(again(x, T).square().sum(), others), strict=True):
        same(a, b)
    exact = layer().attention_maps(x, T).tokens
    error = (maps.tokens - exact).norm() / exact.norm()
    assert 0.01 < error < 1


def test_draws_come_from_the_generator() -> None:
    x = tokens()
    for options in (
        {"approx": "orthoformer", "selection": "random"},
        {"approx": "performer"},
        {"approx": "orthoformer"},
    ):
        module = layer(**options, num_prototypes=4)
        outs = [module(x, T, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
        same(module(x, T), outs[0])  # seed 0 is the default
        maps = module.attention_maps(x, T, generator=torch.Generator().manual_seed(1))
        mixed = module._pool_time(
            maps.time.permute(2, 0, 1, 3).flatten(0, 1), maps.tokens.permute(2, 1, 0, 3).flatten(1, 2)
        )
        same(module.out(mixed.unflatten(0, (N, 2)).transpose(0, 1)), outs[2][:, 1:])


def test_prototypes_of_each_frame_stand_in_both_factors() -> None:
    module, x = layer(approx="orthoformer", num_prototypes=2, per_frame=True), tokens()
    index = torch.randint(S, (2, HEADS, T, 2), generator=torch.Generator().manual_seed(0))
    found = module.attention_maps(x, T, prototype_index=index).tokens.unflatten(3, (HEADS, -1))
    q, k, v = (y[:, :, 1:] for y in module.queries_keys_values(x))
    for t in range(T):
        here = slice(t * S, (t + 1) * S)
        p = q[:, :, here].gather(2, index[:, :, t, :, None].expand(-1, -1, -1, q.shape[3]))
        expected = orthoformer_attention(
            q.flatten(0, 1), k[:, :, here].flatten(0, 1), v[:, :, here].flatten(0, 1), p.flatten(0, 1)
        )
        same(found[:, :, t], expected.unflatten(0, (2, HEADS)).transpose(1, 2))


def test_candidates_from_both_are_queries_and_keys() -> None:
    q, k, v = qkv()
    module = layer(approx="orthoformer", num_prototypes=5, candidates="both", dim=8, heads=1)
    both = torch.cat([q, 10 * k], dim=1)
    generator = torch.Generator().manual_seed(0)
    order = most_orthogonal_subset(both, 5, generator=generator)
    assert (order >= 24).any() and (order < 24).any()
    p = both.gather(1, order.unsqueeze(2).expand(-1, -1, 8))
    found = module.approx.tokens(q, 10 * k, v, 3)(q)
    same(found.permute(2, 1, 0, 3), orthoformer_attention(q, 10 * k, v, p, num_frames=3))


class Framed(nn.Module):
    def __init__(self, module: nn.Module, frames: int) -> None:
        super().__init__()
        self.module, self.frames = module, frames

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, self.frames)


def growth(module: nn.Module) -> float:
    """How much more 800 tokens a frame cost than 400."""
    small, large = (count_macs(Framed(module, 4), tokens(1, 4, space).float().to("meta")) for space in (400, 800))
    return large / small


@pytest.mark.parametrize("approx", ["orthoformer", "nystrom", "performer"])
def test_cost_is_linear_in_the_tokens(approx: str) -> None:
    assert growth(layer(approx=approx, num_prototypes=8).float()) < 2.01
    assert growth(layer().float()) > 3
