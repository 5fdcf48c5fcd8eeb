"""Video transformers: tokens and positions, sizes and costs of the paper's tables, options, weights that do not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders import (
    EPIC_CLASSES,
    CheckpointError,
    SpaceTimePositions,
    TubeletEmbedding,
    VideoTransformer,
    count_macs,
    inflate_patch_kernel,
    init_from_image_vit,
    load_motionformer_checkpoint,
    macs_video_transformer,
    motionformer,
    motionformer_hr,
    motionformer_key_map,
    motionformer_l,
    seeded_init,
)
from avssl_core.encoders.tubelets import resize_positions
from avssl_core.encoders.video_transformer import Block, StochasticDepth

KINDS = ("trajectory", "joint", "divided")
TINY = {"num_frames": 2, "img_size": 16, "patch": 8, "dim": 12, "depth": 2, "heads": 2}


def tiny(classes: object = 5, **options: object) -> VideoTransformer:
    with seeded_init(0):
        return VideoTransformer(classes, **{**TINY, **options}).eval()


def clip(batch: int = 2, frames: int = 4, side: int = 16, *, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(seed))


def on_meta(build: object = VideoTransformer, *args: object, **options: object) -> VideoTransformer:
    with torch.device("meta"):  # shapes without arithmetic
        return build(*args, **options)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tubelet", [1, 2, 3])
def test_central_inflation_sees_one_frame_of_each_cube(tubelet: int) -> None:
    module = TubeletEmbedding(6, tubelet=tubelet, patch=4)
    x = clip(frames=2 * tubelet)
    frames = x[:, :, tubelet // 2 :: tubelet]  # (B, 3, 2, H, W)
    kernel = module.proj.weight[:, :, tubelet // 2]
    expected = F.conv2d(frames.transpose(1, 2).flatten(0, 1), kernel, module.proj.bias, stride=4)
    expected = expected.unflatten(0, (2, 2)).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["central", "average"])
def test_inflated_kernels_answer_alike_to_a_still_clip(mode: str) -> None:
    kernel = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    inflated = inflate_patch_kernel(kernel, 3, mode)
    assert (inflated.abs().sum((0, 1, 3, 4)) > 0).sum() == (1 if mode == "central" else 3)
    picture = clip()[:, :, 0]
    still = F.conv3d(picture.unsqueeze(2).expand(-1, -1, 3, -1, -1), inflated, stride=(3, 4, 4))
    torch.testing.assert_close(still[:, :, 0], F.conv2d(picture, kernel, stride=4), rtol=0, atol=1e-5)


def test_separate_positions_are_a_sum_and_start_as_those_of_a_picture() -> None:
    module = SpaceTimePositions(6, 3, 2)
    x = torch.randn(2, 3, 2, 2, 6, generator=torch.Generator().manual_seed(2))
    out = module(x)
    place = module.place[0, 1:]
    assert torch.equal(out[:, 1:], x.flatten(1, 3) + place.repeat(3, 1))  # time starts at zero
    assert torch.equal(out[:, 0], (module.class_token[0] + module.place[0, :1]).expand(2, -1))
    nn.init.trunc_normal_(module.time, generator=torch.Generator().manual_seed(4))
    expected = x + place.unflatten(0, (1, 2, 2)) + module.time[0, :, None, None]
    torch.testing.assert_close(module(x)[:, 1:], expected.flatten(1, 3))
    assert torch.equal(module(x)[:, 0], out[:, 0])  # the class token is at no time


def test_joint_positions_start_alike_in_every_frame() -> None:
    module = SpaceTimePositions(6, 3, 2, kind="joint")
    by_frame = module.place[0, 1:].unflatten(0, (3, 4))
    assert torch.equal(by_frame[0], by_frame[2]) and by_frame[0].std() > 0.005
    assert module.time is None
    with pytest.raises(ValueError, match="joint positions are for 2 x 2 tokens, got 3 x 2"):
        module(torch.zeros(1, 3, 3, 2, 6))


def test_positions_of_other_sizes() -> None:
    """Positions that are linear in the place stay so inside, and their own size is left alone."""
    rows = torch.arange(8.0)[:, None].expand(8, 8)
    place = torch.stack([rows, rows.T], dim=2).flatten(0, 1).unsqueeze(0)  # (1, 64, 2)
    assert resize_positions(place, 8, 8, 8) is place
    found = resize_positions(place, 8, 16, 12).unflatten(1, (16, 12))[0]
    inside = found[4:-4, 3:-3]
    # The kernel (a = -0.75) leaves a ramp straight within 0.05; a shift of half a token would be 0.25.
    expected = ((torch.arange(16) + 0.5) / 2 - 0.5)[4:-4, None].expand(-1, 6)
    torch.testing.assert_close(inside[..., 0], expected, rtol=0, atol=0.06)
    expected = ((torch.arange(12) + 0.5) / 1.5 - 0.5)[3:-3].expand(8, -1)
    torch.testing.assert_close(inside[..., 1], expected, rtol=0, atol=0.06)


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", KINDS)
def test_shapes(attention: str) -> None:
    model = tiny(attention=attention)
    assert model(clip()).shape == (2, 5)
    assert model.features(clip()).shape == (2, 12)
    assert model.tokens(clip(side=24)).shape == (2, 1 + 2 * 9, 12)  # resized positions
    assert model.embed(clip()).shape == (2, 1 + 2 * 4, 12)
    assert torch.equal(model.features(clip()), model.tokens(clip())[:, 0])
    assert torch.equal(model(clip()), model.classify(model.features(clip())))


def test_one_classifier_several_or_none() -> None:
    logits = tiny(EPIC_CLASSES)(clip())
    assert {name: tuple(x.shape) for name, x in logits.items()} == {"verb": (2, 97), "noun": (2, 300)}
    bare = tiny(None)
    assert torch.equal(bare(clip()), bare.features(clip()))
    assert not [name for name, _ in bare.named_parameters() if "pre_logits" in name or "classifiers" in name]
    plain, hidden = tiny(pre_logits=False), tiny()
    assert count(hidden) - count(plain) == 12 * 13
    features = hidden.features(clip())
    expected = hidden.classifiers["class"](torch.tanh(hidden.pre_logits(features)))
    assert torch.equal(hidden.classify(features), expected)


@pytest.mark.parametrize("pool", ["class", "mean"])
@pytest.mark.parametrize("attention", KINDS)
def test_clips_do_not_mix_and_every_parameter_learns(attention: str, pool: str) -> None:
    options = {"recompute": True} if attention == "trajectory" else None
    model = tiny(attention=attention, pool=pool, drop_path=0.0, attention_options=options)
    both = model(clip())
    torch.testing.assert_close(model(clip()[1:]), both[1:], rtol=0, atol=1e-6)
    model.train()
    F.cross_entropy(model(clip()), torch.tensor([0, 1])).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    if attention == "trajectory":
        # The class token looks at keys and values directly, so that nobody reads what the last block does to patches;
        # and patches never look at the class token.
        last = "blocks.1.attention.trajectory"
        second_stage = {f"{last}_{kind}.{what}" for kind in ("q", "kv") for what in ("weight", "bias")}
        assert idle == (second_stage if pool == "class" else {"positions.class_token"})
    else:
        assert not idle


def test_mean_of_the_patches() -> None:
    model = tiny(pool="mean")
    assert torch.equal(model.features(clip()), model.tokens(clip())[:, 1:].mean(1))
    with pytest.raises(ValueError, match="unknown pool 'max'"):
        tiny(pool="max")


def test_initialisation_is_a_vits() -> None:
    model = tiny(dim=64, heads=4)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.bias.abs().max() == 0, name
            assert 0.015 < module.weight.std() < 0.025, name
    assert model.positions.time.abs().max() == 0


def test_blocks_draw_apart_and_prototypes_can_be_given() -> None:
    options = {"approx": "orthoformer", "num_prototypes": 3, "selection": "random"}
    model = tiny(attention_options=options)
    assert [block.attention.approx.seed for block in model.blocks] == [0, 1]
    x = clip()
    first, again, other = (model(x, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    index = torch.stack([torch.arange(3), torch.arange(2, 5)])[:, None, None].expand(2, 2, 2, 3)
    given = model(x, prototype_index=index)
    for block, rows in zip(model.blocks, index, strict=True):
        block.register_forward_pre_hook(
            lambda _, args, kwargs, rows=rows: (args, {**kwargs, "prototype_index": rows}), with_kwargs=True
        )
    assert torch.equal(model(x), given)
    with pytest.raises(ValueError, match="expected prototypes for 2 blocks, got 1"):
        model(x, prototype_index=index[:1])


def test_stochastic_depth() -> None:
    drop = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = drop(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out.amin((1, 2)), out.amax((1, 2)))  # whole clips
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(x), x)
    rates = [block.drop.rate for block in tiny(depth=5, drop_path=0.2).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_time_attention_of_a_divided_block_is_never_dropped() -> None:
    with seeded_init(0):
        block = Block(12, 2, "divided", drop_path=0.999999)
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(3))
    expected = x + block.time_attention(block.time_norm(x), 2)
    torch.testing.assert_close(block(x, 2), expected)
    assert (expected - x).abs().max() > 1e-3


# --- sizes and costs of the paper ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options", "side", "printed", "exact"),
    [
        (motionformer, {}, 224, 369.5, 369.4),
        (motionformer_l, {}, 224, 1185.1, 1184.9),
        (motionformer_hr, {}, 336, 958.8, 958.4),
        (VideoTransformer, {"attention": "joint"}, 224, 180.6, 180.5),
        (VideoTransformer, {"attention": "divided"}, 224, 185.8, 185.5),
    ],
)
def test_costs_of_the_papers_models(build: object, options: dict, side: int, printed: float, exact: float) -> None:
    model = on_meta(build, **options)
    by_definition = macs_video_transformer(model, side, side)
    assert round(by_definition / 1e9, 1) == exact
    assert abs(by_definition / 1e9 - printed) < 0.5
    ours = macs_video_transformer(model, side, side, as_defined=False)
    x = torch.empty(1, 3, 2 * model.num_frames, side, side, device="meta")
    assert count_macs(model, x) == ours
    if model.attention == "trajectory":
        assert ours < 0.65 * by_definition
    else:
        assert ours == by_definition


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"value_proj": False},
        {"temporal": "average"},
        {"normalise": "spacetime"},
        {"normalise": "spacetime", "value_proj": False},
    ],
)
def test_closed_form_of_every_reading(options: dict) -> None:
    model = on_meta(VideoTransformer, 5, **TINY, attention_options=options)
    x = torch.empty(1, 3, 4, 16, 24, device="meta")
    assert count_macs(model, x) == macs_video_transformer(model, 16, 24, as_defined=False)
    approximate = on_meta(VideoTransformer, 5, **TINY, attention_options={"approx": "nystrom"})
    with pytest.raises(ValueError, match="no closed form for approximate attention"):
        macs_video_transformer(approximate, 16, 24)


def test_parameters_of_the_papers_models() -> None:
    unused = 768 * (3 * 16 * 16 + 1)  # the release's image projection, which the paper counts
    found = {kind: count(on_meta(VideoTransformer, attention=kind)) for kind in KINDS}
    assert {kind: round((n + unused) / 1e6, 1) for kind, n in found.items()} == {
        "trajectory": 109.1,
        "joint": 87.9,
        "divided": 116.3,
    }
    assert found["trajectory"] + unused == 109144720  # the release's own count
    assert found["divided"] + unused == 116250256
    assert count(on_meta(motionformer_hr)) == found["trajectory"]
    assert count(on_meta(motionformer_l)) == found["trajectory"] + 8 * 768


# --- errors and weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "axial"}, "unknown attention 'axial'"),
        ({"attention": "joint", "attention_options": {"value_proj": True}}, r"no options, got \['value_proj'\]"),
        ({"depth": 0}, "got 0, 8 for 16"),
        ({"img_size": 20}, "8 for 20"),
        ({"drop_path": 1.0}, "and 1.0"),
        ({"position": "sine"}, "unknown positions 'sine'"),
        ({"inflation": "first"}, "unknown inflation 'first'"),
        ({"num_frames": 0}, "must be positive"),
        ({"tubelet": 0}, "must be positive"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_bad_clips() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="positions are for 2 frames of tokens, got 3"):
        model(clip(frames=6))
    with pytest.raises(ValueError, match="cubes of 2 x 8 x 8 do not fill a clip of 5 x 16 x 16; crop or resize"):
        model(clip(frames=5))
    with pytest.raises(ValueError, match=r"got shape \(2, 4, 3, 16, 16\)"):
        model(clip().transpose(1, 2))
    with pytest.raises(ValueError, match=r"got torch.uint8"):
        model(clip().byte())


def released(model: VideoTransformer) -> dict[str, Tensor]:
    """The model's own weights as the release names them, with what it keeps unused."""
    own = model.state_dict()
    state = {theirs: own[ours].clone() for ours, theirs in motionformer_key_map(model).items()}
    return state | {"patch_embed.proj.weight": torch.zeros(12, 3, 8, 8), "patch_embed.proj.bias": torch.zeros(12)}


@pytest.mark.parametrize(
    "options", [{}, {"attention": "divided"}, {"position": "joint"}, {"tubelet": 1, "num_frames": 4}]
)
def test_weights_travel(options: dict) -> None:
    source, target = tiny(**options), tiny(**options)
    for p in target.parameters():
        nn.init.zeros_(p)
    state = released(source)
    if options.get("tubelet") == 1:  # squares use the image projection
        state["patch_embed.proj.weight"] = state["patch_embed_3d.proj.weight"].squeeze(2)
        state["patch_embed_3d.proj.weight"] = torch.zeros_like(state["patch_embed_3d.proj.weight"])
    if options.get("position") == "joint":
        state["pos_embed"] = torch.zeros(1, 5, 12)  # saved, and unused
    assert load_motionformer_checkpoint(state, target) is target
    torch.testing.assert_close(target(clip()), source(clip()), rtol=0, atol=0)


def test_weights_from_a_file_beside_other_things(tmp_path) -> None:
    model = tiny()
    path = tmp_path / "checkpoint.pyth"
    torch.save({"epoch": 34, "model_state": released(model), "optimizer_state": {"state": {}}, "cfg": "A: 1"}, path)
    target = tiny(EPIC_CLASSES)
    with pytest.raises(CheckpointError, match=r"missing: head0\.bias"):
        load_motionformer_checkpoint(path, target)
    target = tiny(num_frames=2)
    assert not load_motionformer_checkpoint(path, target.train()).training
    assert torch.equal(target(clip()), model(clip()))


def test_weights_that_do_not_fit() -> None:
    model = tiny()
    state = released(model)
    with pytest.raises(CheckpointError, match=r"1 unexpected: blocks.0.surprise"):
        load_motionformer_checkpoint(state | {"blocks.0.surprise": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match=r"temp_embed \(1, 2, 12\) instead of \(1, 3, 12\)"):
        load_motionformer_checkpoint(state, tiny(num_frames=3))
    with pytest.raises(CheckpointError, match=r"missing: blocks\.0\.norm3\.bias"):
        load_motionformer_checkpoint(state, tiny(attention="divided"))


def image_vit(side: int = 2) -> dict[str, Tensor]:
    """A ViT's weights, from those of our model for one frame."""
    with seeded_init(5):
        model = VideoTransformer(5, **{**TINY, "num_frames": 1, "img_size": 8 * side, "attention": "joint"}, tubelet=1)
    state = released(model)
    state["patch_embed.proj.weight"] = state.pop("patch_embed_3d.proj.weight").squeeze(2)
    state["patch_embed.proj.bias"] = state.pop("patch_embed_3d.proj.bias")
    for key in ("temp_embed", "pre_logits.fc.weight", "pre_logits.fc.bias", "head.weight", "head.bias"):
        del state[key]
    return state | {"head.weight": torch.zeros(1000, 12), "head.bias": torch.zeros(1000)}


def test_a_still_clip_is_to_the_new_model_what_its_picture_was_to_the_vit() -> None:
    """Joint attention over copies of one picture is attention over the picture, but for the class token's weight."""
    vit = image_vit()
    model = tiny(None, attention="joint", num_frames=1)
    init_from_image_vit(model, vit)
    picture = VideoTransformer(None, **{**TINY, "num_frames": 1, "attention": "joint"}, tubelet=1).eval()
    init_from_image_vit(picture, vit)
    still = clip(frames=1).expand(-1, -1, 2, -1, -1)
    torch.testing.assert_close(model.features(still), picture.features(still[:, :, :1]), rtol=0, atol=1e-6)
    average = tiny(None, attention="joint", num_frames=1)
    init_from_image_vit(average, vit, inflation="average")
    torch.testing.assert_close(average.features(still), model.features(still), rtol=0, atol=1e-6)
    moving = clip(frames=2)
    assert (average.features(moving) - model.features(moving)).abs().max() > 1e-3


def test_a_classifier_of_as_many_classes_is_copied_and_no_other() -> None:
    vit = image_vit() | {"head.weight": torch.ones(1000, 12), "head.bias": torch.full((1000,), 2.0)}
    same, other = tiny(1000), tiny(5)
    assert not any(key.startswith("classifiers") for key in init_from_image_vit(same, vit))
    assert (same.classifiers["class"].weight == 1).all() and (same.classifiers["class"].bias == 2).all()
    assert "classifiers.class.weight" in init_from_image_vit(other, vit)
    assert other.classifiers["class"].weight.std() > 0


def test_positions_of_a_vit_are_resized_and_a_bad_one_is_refused() -> None:
    vit = image_vit(side=3)
    model = tiny()
    left = init_from_image_vit(model, vit)
    assert "positions.time" in left and "blocks.1.attention.trajectory_kv.weight" in left
    assert torch.equal(model.positions.place[:, 1:], resize_positions(vit["pos_embed"][:, 1:], 3, 2, 2))
    with pytest.raises(CheckpointError, match="no image ViT: it has no 'pos_embed'"):
        init_from_image_vit(model, {k: v for k, v in vit.items() if k != "pos_embed"})
    with pytest.raises(CheckpointError, match="7 positions are not one class token and a square grid"):
        init_from_image_vit(model, vit | {"pos_embed": torch.zeros(1, 7, 12)})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing: blocks\.2"):
        init_from_image_vit(tiny(depth=3), vit)
    with pytest.raises(CheckpointError, match="unexpected"):
        init_from_image_vit(tiny(depth=1), vit)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
