"""Drawing: anti-aliased shapes from signed distances, with shading and a soft shadow, all frames of an actor at once.

A shape is a signed distance ``d(u, v)`` in units of the actor's radius (negative inside). Distances are evaluated
only on a small box around the actor, for all frames in one array (T, P, P); the boxes are then blended into the
frames. This keeps a 96×96 frame at a fraction of a millisecond in plain numpy.
"""

from __future__ import annotations

import numpy as np

from .motion import Track, camera_offset, track
from .scene import Actor, Scene
from .textures import FloatArray, draw_ground

SHAPES: tuple[str, ...] = ("ball", "star", "box", "ring", "heart", "cross", "moon", "flower")
SKINS: tuple[str, ...] = ("plain", "striped", "spotted")
REACH: dict[str, float] = {  # how far a shape reaches from its centre, in radii
    "ball": 0.93,
    "star": 1.13,
    "box": 1.14,
    "ring": 1.0,
    "heart": 1.22,
    "cross": 1.07,
    "moon": 1.01,
    "flower": 1.05,
}


def _ball(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.sqrt(u * u + v * v) - 0.92


def _box(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.8


def _ring(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.abs(np.sqrt(u * u + v * v) - 0.74) - 0.25


def _cross(u: FloatArray, v: FloatArray) -> FloatArray:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - 1.0, np.minimum(a, b) - 0.34)


def _star(u: FloatArray, v: FloatArray) -> FloatArray:
    """Five points: fold the plane into one tenth of a turn and measure the distance to one edge."""
    sector = np.float32(2 * np.pi / 5)
    theta = np.arctan2(u, -v)
    theta = np.abs(theta - sector * np.round(theta / sector))
    r = np.sqrt(u * u + v * v)
    px, py = r * np.cos(theta), r * np.sin(theta)
    outer, inner = 1.12, 0.52
    ix, iy = inner * np.cos(sector / 2), inner * np.sin(sector / 2)
    ex, ey = ix - outer, iy  # edge from the tip (outer, 0) to the notch (ix, iy)
    length = np.hypot(ex, ey)
    return -((px - outer) * (-ey) + py * ex) / length


def _heart(u: FloatArray, v: FloatArray) -> FloatArray:
    a, b = np.abs(u), 0.25 - v
    lobes = np.sqrt((a - 0.43) ** 2 + (b - 0.28) ** 2) - 0.56
    tip = np.maximum(0.72 * a - 0.69 * b - 0.66, b - 0.28)
    return np.minimum(lobes, tip)


def _moon(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.maximum(np.sqrt(u * u + v * v) - 1.0, 0.8 - np.sqrt((u - 0.5) ** 2 + (v + 0.2) ** 2))


def _flower(u: FloatArray, v: FloatArray) -> FloatArray:
    r, theta = np.sqrt(u * u + v * v), np.arctan2(v, u)
    return 0.75 * (r - (0.78 + 0.26 * np.cos(6 * theta)))


_DISTANCES = {
    "ball": _ball,
    "star": _star,
    "box": _box,
    "ring": _ring,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "flower": _flower,
}


def signed_distance(shape: str, u: FloatArray, v: FloatArray) -> FloatArray:
    """Signed distance to ``shape`` in units of its radius; negative inside.

    Raises:
        ValueError: the shape is unknown.
    """
    if shape not in _DISTANCES:
        raise ValueError(f"unknown shape {shape!r}; choose one of {', '.join(SHAPES)}")
    return _DISTANCES[shape](u, v)


def _boxes(x: FloatArray, y: FloatArray, side: int) -> tuple[np.ndarray, np.ndarray, FloatArray, FloatArray]:
    """Boxes of P = ``side`` pixels around the centres: integer corners (T,), pixel offsets (T, 1, P) and (T, P, 1)."""
    left, top = np.floor(x - side / 2).astype(np.int64), np.floor(y - side / 2).astype(np.int64)
    line = np.arange(side, dtype=np.float32) + 0.5
    dx = (line[None, :] + (left - x)[:, None]).astype(np.float32)[:, None, :]
    dy = (line[None, :] + (top - y)[:, None]).astype(np.float32)[:, :, None]
    return left, top, dx, dy


def body_coordinates(actor: Actor, course: Track, dx: FloatArray, dy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixel offsets from the centre → coordinates (u, v) in radii, with the stretch and then the rotation undone."""
    radius, stretch = (a.astype(np.float32)[:, None, None] for a in (course.radius, course.stretch))
    u, v = dx * (stretch / radius), dy / (stretch * radius)
    if not course.angle.any():
        u, v = np.broadcast_arrays(u, v)
        return u, v
    c, s = (f(course.angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return c * u + s * v, c * v - s * u


def _skin(actor: Actor, u: FloatArray, v: FloatArray) -> FloatArray | None:
    """Where the darker pattern lies, in [0, 1]; it shows rotation on round shapes."""
    if actor.skin == "striped":
        return np.clip(0.5 + 3.0 * np.sin(np.float32(5.5) * u), 0, 1)
    if actor.skin == "spotted":
        return np.clip(3.0 * np.sin(np.float32(5.0) * (u + v)) * np.sin(np.float32(5.0) * (u - v)) - 0.2, 0, 1)
    return None


def _paint(actor: Actor, course: Track, dx: FloatArray, dy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coverage (T, P, P, 1) in [0, 1] and colour (T, P, P, 3) in [0, 255] of the actor on its boxes."""
    u, v = body_coordinates(actor, course, dx, dy)
    radius = course.radius.astype(np.float32)[:, None, None]
    inside = -signed_distance(actor.shape, u, v) * radius  # pixels from the edge, positive inside
    cover = np.clip(inside + 0.5, 0, 1) * course.presence.astype(np.float32)[:, None, None]
    tone = 1.0 - (0.10 * dx + 0.24 * dy) / radius  # lit from above
    tone *= 0.55 + 0.45 * np.clip(inside / (0.16 * radius), 0, 1)  # a darker rim
    pattern = _skin(actor, u, v)
    if pattern is not None:
        tone *= 1.0 - 0.22 * pattern
    colour = np.array(actor.colour, np.float32) * 255
    return cover[..., None], np.minimum(tone[..., None] * colour, 255.0)


def _shadow(course: Track, dx: FloatArray, dy: FloatArray) -> FloatArray:
    """Darkening (T, P, P, 1) of the ground: a soft ellipse that pales as the body rises."""
    radius = course.radius.astype(np.float32)[:, None, None]
    rise = course.height.astype(np.float32)[:, None, None] / radius
    wide = radius * (1.05 + 0.12 * rise)
    r2 = (dx / wide) ** 2 + (dy / (0.72 * wide)) ** 2
    dark = 0.5 * np.clip(1.15 - r2, 0, 1) / (1 + 0.5 * rise)
    return (dark * course.presence.astype(np.float32)[:, None, None])[..., None]


def _clip_box(left: int, top: int, side: int, size: int) -> tuple[slice, slice, slice, slice] | None:
    """Slices of the frame and of the box where they overlap, or None."""
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    if x0 >= x1 or y0 >= y1:
        return None
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def draw_actor(canvas: FloatArray, actor: Actor, scene: Scene) -> None:
    """Blend an actor and its shadow into ``canvas`` (T, H, W, 3), float32 in [0, 255], in place."""
    first, last = live_frames(actor, scene)
    if last <= first:
        return
    course = track(actor, scene, np.arange(first, last) / scene.fps)
    if actor.shape not in REACH:
        raise ValueError(f"unknown shape {actor.shape!r}; choose one of {', '.join(SHAPES)}")
    widest = float((course.radius * np.maximum(course.stretch, 1 / course.stretch)).max())
    side = int(np.ceil(2 * REACH[actor.shape] * widest)) + 3
    left, top, dx, dy = _boxes(course.x, course.centre_y, side)
    cover, colour = _paint(actor, course, dx, dy)
    s_side = int(np.ceil(2.2 * float((1.05 * course.radius + 0.12 * course.height).max()))) + 3
    s_left, s_top, s_dx, s_dy = _boxes(course.x + 0.2 * course.radius, course.y + 0.75 * course.radius, s_side)
    shadow = 1 - _shadow(course, s_dx, s_dy)
    for i, frame in enumerate(canvas[first:last]):
        where = _clip_box(int(s_left[i]), int(s_top[i]), s_side, scene.size)
        if where is not None:
            frame[where[0], where[1]] *= shadow[i, where[2], where[3]]
        where = _clip_box(int(left[i]), int(top[i]), side, scene.size)
        if where is not None:
            under = frame[where[0], where[1]]
            under += cover[i, where[2], where[3]] * (colour[i, where[2], where[3]] - under)


def live_frames(actor: Actor, scene: Scene) -> tuple[int, int]:
    """Half-open range of the frames whose time lies within the actor's life."""
    first = max(0, int(np.ceil(actor.start_s * scene.fps - 1e-6)))
    return first, min(scene.num_frames, int(np.ceil(actor.end_s * scene.fps - 1e-6)))


def draw_background(scene: Scene) -> FloatArray:
    """The ground as the swaying camera sees it: ``(T, H, W, 3)`` float32, by bilinear shifts."""
    size, times = scene.size, np.arange(scene.num_frames) / scene.fps
    margin = int(np.ceil(scene.camera.sway * size)) + 1
    ground = draw_ground(scene.background, side=size + 2 * margin + 1, unit=size)
    pan_x, pan_y = camera_offset(scene.camera, times, size)
    canvas = np.empty((len(times), size, size, 3), np.float32)
    for frame, px, py in zip(canvas, pan_x + margin, pan_y + margin, strict=True):
        x, y = int(px), int(py)
        fx, fy = np.float32(px - x), np.float32(py - y)
        rows = ground[y : y + size, x : x + size + 1] * (1 - fy) + ground[y + 1 : y + size + 1, x : x + size + 1] * fy
        np.multiply(rows[:, :-1], 1 - fx, out=frame)
        frame += rows[:, 1:] * fx
    return canvas


def add_grain(canvas: FloatArray, grain: float, rng: np.random.Generator) -> None:
    """Picture noise, in place: one field laid elsewhere on every frame (fresh noise would cost more than the scene)."""
    if grain <= 0:
        return
    size = canvas.shape[1]
    field = rng.standard_normal((size + 48, size + 48, 3), dtype=np.float32) * np.float32(255 * grain)
    for frame, (dy, dx) in zip(canvas, rng.integers(0, 49, (len(canvas), 2)), strict=True):
        frame += field[dy : dy + size, dx : dx + size]


def draw_scene(scene: Scene) -> np.ndarray:
    """Draw a scene: ``(T, H, W, 3)`` uint8."""
    canvas = draw_background(scene)
    for actor in scene.actors:
        draw_actor(canvas, actor, scene)
    add_grain(canvas, scene.grain, np.random.default_rng([scene.seed, 1]))
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
