"""Attention layers, blocks and approximations against numbers of the official Motionformer code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from avssl_core.encoders import (
    DividedAttention,
    JointAttention,
    TrajectoryAttention,
    iterative_pinv,
    most_orthogonal_subset,
    nystrom_attention,
    orthoformer_attention,
    performer_attention,
    performer_features,
    segment_means,
)
from avssl_core.encoders.checkpoints import load_mapped, source_key
from avssl_core.encoders.motionformer_checkpoints import ATTENTION_RULES, BLOCK_RULES
from avssl_core.encoders.video_transformer import Block

FORWARD = {"rtol": 1e-4, "atol": 2e-5}
GRADIENT = {"rtol": 0.0, "atol": 1e-4}
READINGS = {"value_identity": False, "value_projected": True}
Load = Callable[[str], tuple[dict[str, Tensor], dict]]


@pytest.fixture(scope="module")
def load(fixtures_dir: Path) -> Load:
    def read(name: str) -> tuple[dict[str, Tensor], dict]:
        path = fixtures_dir / "motionformer" / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            return load_file(path), json.loads(file.metadata()["params"])

    return read


def fill(module: nn.Module, fixture: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Load the fixture's weights, all of them; returns our key to the reference's."""
    state = {key.removeprefix("state."): value for key, value in fixture.items() if key.startswith("state.")}
    mapping = {key: source_key(key, rules) for key in module.state_dict()}
    load_mapped(module, state, mapping, ignored=(), name="fixture")
    return mapping


def attention(kind: type, fixture: dict[str, Tensor], p: dict, **options: object) -> tuple[nn.Module, dict[str, str]]:
    module = kind(p["dim"], p["heads"], qkv_bias=p["qkv_bias"], **options)
    return module, fill(module, fixture, ATTENTION_RULES)


def pass_through(module: nn.Module, fixture: dict[str, Tensor], *args: object, **kwargs: object):
    """Output, gradient of the input, gradients of the parameters and what the output projection was given."""
    seen: list[Tensor] = []
    handle = module.out.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    x = fixture["x"].clone().requires_grad_()
    out = module(x, *args, **kwargs)
    handle.remove()
    out.backward(fixture["cotangent"])
    gradients = {
        name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in module.named_parameters()
    }
    return out.detach(), x.grad, gradients, seen[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", ["attn_trajectory_a", "attn_trajectory_b", "attn_trajectory_ortho_a"])
def test_trajectory(load: Load, name: str, reading: str, recompute: bool) -> None:
    fixture, p = load(name)
    options: dict = {"value_proj": READINGS[reading], "recompute": recompute}
    index = fixture.get("selection_order")
    if index is not None:
        options |= {"approx": "orthoformer", "num_prototypes": p["num_landmarks"]}
    module, mapping = attention(TrajectoryAttention, fixture, p, **options)
    found = pass_through(module, fixture, p["frames"], prototype_index=index)
    out, grad_x, gradients, before = found
    torch.testing.assert_close(out, fixture[f"out_{reading}"], **FORWARD)
    if f"pre_proj_{reading}" in fixture:
        torch.testing.assert_close(before, fixture[f"pre_proj_{reading}"], **FORWARD)
    torch.testing.assert_close(grad_x, fixture[f"grad_x_{reading}"], **GRADIENT)
    theirs = {key for key in fixture if key.startswith(f"grad_{reading}.")}
    assert theirs == {f"grad_{reading}.{mapping[key]}" for key in gradients}
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, fixture[f"grad_{reading}.{mapping[key]}"], **GRADIENT)


@pytest.mark.parametrize("name", ["attn_trajectory_a", "attn_trajectory_b", "attn_trajectory_ortho_a"])
def test_what_a_trajectory_layer_looks_at(load: Load, name: str) -> None:
    fixture, p = load(name)
    index = fixture.get("selection_order")
    options = {} if index is None else {"approx": "orthoformer", "num_prototypes": p["num_landmarks"]}
    module, _ = attention(TrajectoryAttention, fixture, p, **options)
    maps = module.attention_maps(fixture["x"], p["frames"], prototype_index=index)
    torch.testing.assert_close(maps.tokens, fixture["trajectory_tokens"], **FORWARD)
    torch.testing.assert_close(maps.time, fixture["temporal_attention"], **FORWARD)
    if "reference_tokens" in fixture:
        n = p["frames"] * p["patches_per_frame"]
        own = maps.tokens[:, torch.arange(n), torch.arange(n) // p["patches_per_frame"]]
        torch.testing.assert_close(own, fixture["reference_tokens"], **FORWARD)


def test_the_module_chooses_the_fixtures_prototypes(load: Load) -> None:
    fixture, p = load("attn_trajectory_ortho_a")
    module, _ = attention(
        TrajectoryAttention, fixture, p, approx="orthoformer", num_prototypes=p["num_landmarks"], value_proj=True
    )
    q = module.queries_keys_values(fixture["x"])[0][:, :, 1:].flatten(0, 1)
    order = most_orthogonal_subset(q, p["num_landmarks"], first=fixture["first_index"].flatten())
    assert torch.equal(order.unflatten(0, fixture["first_index"].shape), fixture["selection_order"])


def test_joint(load: Load) -> None:
    fixture, p = load("attn_joint_a")
    module, mapping = attention(JointAttention, fixture, p)
    out, grad_x, gradients, _ = pass_through(module, fixture, p["frames"])
    torch.testing.assert_close(out, fixture["out"], **FORWARD)
    torch.testing.assert_close(grad_x, fixture["grad_x"], **GRADIENT)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, fixture[f"grad.{mapping[key]}"], **GRADIENT)
    maps = module.attention_maps(fixture["x"], p["frames"])
    torch.testing.assert_close(maps.flatten(3), fixture["attention"][:, :, 1:, 1:], **FORWARD)


@pytest.mark.parametrize("axis", ["time", "space"])
def test_divided(load: Load, axis: str) -> None:
    fixture, p = load("attn_divided_a")
    module, mapping = attention(DividedAttention, fixture, p, axis=axis)
    out, grad_x, gradients, before = pass_through(module, fixture, p["frames"])
    torch.testing.assert_close(out, fixture[f"out_{axis}"], **FORWARD)
    torch.testing.assert_close(before, fixture[f"pre_proj_{axis}"], **FORWARD)
    torch.testing.assert_close(grad_x, fixture[f"grad_x_{axis}"], **GRADIENT)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, fixture[f"grad_{axis}.{mapping[key]}"], **GRADIENT)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [("trajectory", "_value_identity"), ("trajectory", "_value_projected"), ("joint", ""), ("divided", "")],
)
def test_blocks(load: Load, kind: str, suffix: str) -> None:
    fixture, p = load(f"block_{kind}_a")
    options = {"value_proj": READINGS[suffix[1:]]} if suffix else {}
    block = Block(p["dim"], p["heads"], kind, options=options)
    fill(block, fixture, BLOCK_RULES)
    seen: dict[str, Tensor] = {}
    block.mlp_norm.register_forward_pre_hook(lambda _, given: seen.__setitem__("after_attention", given[0]))
    block.attention_norm.register_forward_pre_hook(lambda _, given: seen.__setitem__("after_time_attention", given[0]))
    x = fixture["x"].clone().requires_grad_()
    out = block(x, p["frames"])
    torch.testing.assert_close(out, fixture[f"out{suffix}"], **FORWARD)
    torch.testing.assert_close(seen["after_attention"], fixture[f"after_attention{suffix}"], **FORWARD)
    if kind == "divided":
        torch.testing.assert_close(seen["after_time_attention"], fixture["after_time_attention"], **FORWARD)
    out.backward(fixture["cotangent"])
    torch.testing.assert_close(x.grad, fixture[f"grad_x{suffix}"], **GRADIENT)


# --- approximations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["landmarks_a", "landmarks_subsampled_a"])
def test_most_orthogonal_subset(load: Load, name: str) -> None:
    fixture, p = load(name)
    candidates = fixture.get("candidate_index")
    q, num = fixture["q"], p["num_landmarks"]
    order = most_orthogonal_subset(q, num, first=fixture["first_index"], candidates=candidates)
    # With candidates the fixture counts within them; ours always are rows of q.
    in_q = (lambda i: i) if candidates is None else (lambda i: candidates[i])
    assert torch.equal(order, in_q(fixture["selection_order"]))
    rows = q.gather(1, in_q(fixture["selected_sorted"]).unsqueeze(2).expand(-1, -1, q.shape[2]))
    assert torch.equal(rows, fixture["landmarks"])


def test_orthoformer(load: Load) -> None:
    fixture, p = load("orthoformer_a")
    q, k, v = (fixture[name].clone().requires_grad_() for name in "qkv")
    order = most_orthogonal_subset(q, p["num_landmarks"], first=fixture["first_index"])
    assert torch.equal(order, fixture["selection_order"])
    assert torch.equal(order.sort().values, fixture["landmark_query_index"])
    prototypes = q.detach().gather(1, order.unsqueeze(2).expand(-1, -1, q.shape[2]))
    out = orthoformer_attention(q, k, v, prototypes, num_frames=p["frames"])
    torch.testing.assert_close(out, fixture["out"], rtol=0, atol=1e-5)
    places = torch.eye(p["patches_per_frame"]).repeat(p["frames"], 1).expand(len(q), -1, -1)
    attention = orthoformer_attention(q, k, places, prototypes, num_frames=p["frames"])
    torch.testing.assert_close(attention, fixture["attention"], rtol=0, atol=1e-5)
    gradients = torch.autograd.grad(out, (q, k, v), fixture["cotangent"])
    for name, gradient in zip("qkv", gradients, strict=True):
        torch.testing.assert_close(gradient, fixture[f"grad_{name}"], **GRADIENT)


def test_prototypes_per_frame_agree_with_the_release_where_it_is_consistent(load: Load) -> None:
    """For query frame f and key frame g it multiplies two sets of prototypes; for f = g it is one set, as here."""
    fixture, p = load("orthoformer_a")
    frames, space = p["frames"], p["patches_per_frame"]
    q, k, v = (fixture[name].unflatten(1, (frames, space)) for name in "qkv")
    order = fixture["per_frame_as_coded.selection_order"]
    for f in range(frames):
        first = fixture["per_frame_as_coded.first_index"][:, f]
        assert torch.equal(most_orthogonal_subset(q[:, f], order.shape[2], first=first), order[:, f])
        prototypes = q[:, f].gather(1, order[:, f].unsqueeze(2).expand(-1, -1, q.shape[3]))
        here = slice(f * space, (f + 1) * space)
        for values, name in ((v[:, f], "out"), (torch.eye(space).expand(len(q), -1, -1), "attention")):
            found = orthoformer_attention(q[:, f], k[:, f], values, prototypes)
            expected = fixture[f"per_frame_as_coded.{name}"][:, here, f]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["nystrom_even_a", "nystrom_uneven_a"])
@pytest.mark.parametrize("landmarks", ["time", "space", "all"])
def test_nystrom(load: Load, name: str, landmarks: str) -> None:
    fixture, p = load(name)
    q, k, v, frames = fixture["q"], fixture["k"], fixture["v"], p["frames"]
    if landmarks == "all":
        chosen, suffix = (q, k), "all_tokens"
    else:
        chosen = [segment_means(x, p["num_landmarks"], num_frames=frames, order=landmarks) for x in (q, k)]
        suffix = f"segment_means_over_{landmarks}_first"
    places = torch.eye(p["patches_per_frame"]).repeat(frames, 1).expand(len(q), -1, -1)
    for values, kind in ((v, "out"), (places, "attention")):
        found = nystrom_attention(q, k, values, *chosen, num_frames=frames, iterations=p["inverse_iterations"])
        torch.testing.assert_close(found, fixture[f"{kind}_{suffix}"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("steps", [1, 2, 6, 20])
@pytest.mark.parametrize(("matrix", "init"), [("K", "exact"), ("K", "global"), ("A", "general")])
def test_iterative_inverse(load: Load, matrix: str, init: str, steps: int) -> None:
    fixture, _ = load("iterative_inverse_a")
    found = iterative_pinv(fixture[matrix], steps, init=init)
    torch.testing.assert_close(found, fixture[f"{matrix}_{init}_init_{steps}"], rtol=2e-4, atol=2e-4)


def test_performer(load: Load) -> None:
    fixture, _ = load("performer_a")
    q, k, v = (fixture[name].transpose(1, 2) for name in "qkv")  # (B, h, L, d)
    for x, name in ((q, "q"), (k, "k")):
        found = performer_features(x, fixture["projection"], keys=name == "k")
        torch.testing.assert_close(found.transpose(1, 2), fixture[f"{name}_features"], rtol=0, atol=1e-5)
    out = performer_attention(q, k, v, fixture["projection"])
    torch.testing.assert_close(out.transpose(1, 2), fixture["attention_out"], rtol=0, atol=1e-5)
