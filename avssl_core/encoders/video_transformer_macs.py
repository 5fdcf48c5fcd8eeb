"""What a video transformer costs, in closed form: Motionformer's "GFLOPs", which are multiply-accumulates."""

from __future__ import annotations

from torch import nn

from avssl_core.encoders.trajectory_attention import TrajectoryAttention
from avssl_core.encoders.video_transformer import Block, VideoTransformer


def macs_video_transformer(
    model: VideoTransformer, height: int = 224, width: int = 224, *, as_defined: bool = True
) -> int:
    """Multiply-accumulates of one clip, of convolutions and matrix products as :func:`count_macs` counts them.

    Args:
        model: any sizes; build it under ``torch.device("meta")`` if only its cost is asked for.
        height: of the clip in pixels, a multiple of the patch.
        width: of the clip.
        as_defined: for trajectory attention, whether every trajectory token is projected to a key and a value, as
            the equations say and the paper counts; ``False`` for what this library computes.

    Returns:
        The number. By the definition, the paper's models need 369.4 G (Motionformer), 1184.9 G (-L), 958.4 G (-HR),
        180.5 G (joint) and 185.5 G (divided), within 0.4 G of what its tables print.

    Raises:
        ValueError: for approximate attention; count it with :func:`count_macs`.
    """
    e = model.embedding
    space = (height // e.patch) * (width // e.patch)
    patches = space * model.num_frames
    cube = e.in_channels * e.tubelet * e.patch**2
    layers = sum(_block(block, model.num_frames, space, as_defined) for block in model.blocks)
    head = sum(c.weight.numel() for c in [*model.classifiers.values(), model.pre_logits] if isinstance(c, nn.Linear))
    return patches * cube * model.dim + layers + head


def _block(block: nn.Module, frames: int, space: int, as_defined: bool) -> int:
    if not isinstance(block, Block):
        raise ValueError(f"expected blocks of a VideoTransformer, got {type(block).__name__}")
    attention, mlp = block.attention, block.mlp
    d, patches = attention.dim, frames * space
    n = patches + 1
    linear = n * (4 * d * d + 2 * d * mlp.hidden.out_features)  # q, k, v, output, MLP
    from_class = 2 * n * d
    if isinstance(attention, TrajectoryAttention):
        return linear + from_class + _trajectory(attention, frames, space, as_defined)
    if block.time_attention is None:
        return linear + 2 * n * n * d
    along = 2 * patches * (space + 1) * d + 2 * patches * (frames + 1) * d  # the class token is a key of each
    return linear + 4 * n * d * d + 2 * from_class + along


def _trajectory(attention: TrajectoryAttention, frames: int, space: int, as_defined: bool) -> int:
    """Both stages for the patches."""
    if attention.approx is not None:
        raise ValueError("no closed form for approximate attention; use count_macs(model, clip)")
    d, patches = attention.dim, frames * space
    first = 2 * patches * patches * d
    if attention.trajectory_q is None:
        return first
    if as_defined:
        return first + patches * (d * d + 2 * frames * d * d + 2 * frames * d)
    back = 2 * d * d + attention.heads * frames * d  # the query, W_k^T, and the logits
    pooling = attention.heads * frames * d + d * d if attention.value_proj else frames * d
    return first + patches * (back + pooling)
