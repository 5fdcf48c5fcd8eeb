"""Ground truth, computed from the description of a clip and never from its pixels: tables, boxes and analytic flow.

Written beside the clips: ``truth.parquet`` (one row a clip), ``actors.parquet`` (one row an actor, seen or heard: its
factors), ``onsets.parquet`` (one row a strike) and ``boxes.parquet`` (one row a frame and actor).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from .draw import REACH, body_coordinates, live_frames, signed_distance
from .events import ARTICULATIONS
from .motion import Track, camera_offset, onset_times, track
from .scene import Actor, Clip, Scene

Rows = dict[str, Any]  # column -> value, or array of one length
TABLES = ("truth", "actors", "onsets", "boxes")


@lru_cache(maxsize=32)
def _outline(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Points (u, v) of the rim of a shape, in radii: enough to bound it at any angle within 1/100 radius."""
    line = np.linspace(-REACH[shape], REACH[shape], 264, dtype=np.float32)
    v, u = np.meshgrid(line, line, indexing="ij")
    inside = signed_distance(shape, u, v) <= 0
    wide = np.pad(inside, 1)
    buried = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    rim = inside & ~buried
    return u[rim].astype(np.float64), v[rim].astype(np.float64)


def boxes(actor: Actor, course: Track) -> np.ndarray:
    """Tight boxes (T, 4) of the body as x0, y0, x1, y1 in pixels; not cut at the frame's edges."""
    u, v = _outline(actor.shape)
    c, s = np.cos(course.angle)[:, None], np.sin(course.angle)[:, None]
    dx = (c * u - s * v) * (course.radius / course.stretch)[:, None]
    dy = (s * u + c * v) * (course.radius * course.stretch)[:, None]
    x, y = course.x[:, None] + dx, course.centre_y[:, None] + dy
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)


def _box_rows(clip_id: str, scene: Scene) -> Rows:
    """Boxes of all actors, frame by frame, with the velocity of their centres (pixels a frame, camera included)."""
    parts = []
    for number, actor in enumerate(scene.actors):
        first, last = live_frames(actor, scene)
        if last <= first:
            continue
        course = track(actor, scene, np.arange(first, last) / scene.fps)
        n = last - first
        velocity = np.gradient(np.stack([course.x, course.centre_y]), axis=1) if n > 1 else np.zeros((2, n))
        parts.append((np.arange(first, last), np.full(n, number), [actor.shape] * n, boxes(actor, course), velocity))
    if not parts:
        return {}
    frame, owner, label = (np.concatenate([part[i] for part in parts]) for i in range(3))
    box, velocity = np.concatenate([part[3] for part in parts]), np.concatenate([part[4] for part in parts], axis=1)
    rows: Rows = {
        "clip_id": [clip_id] * len(frame),
        "frame": frame.astype(np.int32),
        "actor": owner.astype(np.int16),
        "label": label,
    }
    rows |= {name: box[:, i].astype(np.float32) for i, name in enumerate(("x0", "y0", "x1", "y1"))}
    return rows | {"vx": velocity[0].astype(np.float32), "vy": velocity[1].astype(np.float32)}


def _actor_row(clip_id: str, number: int, actor: Actor, track_name: str) -> Rows:
    motion, voice = actor.motion, actor.voice
    return {
        "clip_id": clip_id,
        "track": track_name,
        "actor": number,
        "start_s": actor.start_s,
        "end_s": actor.end_s,
        "shape": actor.shape,
        "motion": motion.programme,
        "direction": actor.direction or "none",
        "skin": actor.skin,
        "red": actor.colour[0],
        "green": actor.colour[1],
        "blue": actor.colour[2],
        "x": actor.x,
        "y": actor.y,
        "radius": actor.radius,
        "tempo_hz": motion.tempo_hz,
        "timbre": voice.timbre if voice else "none",
        "articulation": ARTICULATIONS[motion.programme] if voice else "none",
        "pitch_hz": voice.pitch_hz if voice else np.nan,
        "bend_octaves": voice.bend_octaves * (0 if motion.back_and_forth else motion.sign) if voice else 0.0,
        "gain": voice.gain if voice else 0.0,
    }


def clip_truth(clip: Clip, clip_id: str) -> dict[str, list[Rows]]:
    """The rows that a clip adds to each table of ``TABLES``."""
    seen, heard = clip.seen, clip.heard
    actors = [_actor_row(clip_id, i, actor, "seen") for i, actor in enumerate(seen.actors)]
    if heard is not None:
        actors += [_actor_row(clip_id, i, actor, "heard") for i, actor in enumerate(heard.actors)]
    onsets = [
        {"clip_id": clip_id, "track": name, "actor": i, "time_s": float(time)}
        for name, scene in (("seen", seen), ("heard", heard))
        if scene is not None
        for i, actor in enumerate(scene.actors)
        for time in onset_times(actor)
    ]
    truth = {
        "clip_id": clip_id,
        "caption": clip.caption,
        "soundtrack": clip.soundtrack,
        "texture": seen.background.texture,
        "camera_sway": seen.camera.sway,
        "heard_ambience": heard.ambience.family if heard else "none",
        "heard_ambience_hz": heard.ambience.pitch_hz if heard else np.nan,
        "heard_gain": heard.gain if heard else 0.0,
    }
    box = _box_rows(clip_id, seen)
    return {"truth": [truth], "actors": actors, "onsets": onsets, "boxes": [box] if box else []}


_EMPTY = {
    "onsets": {"clip_id": "str", "track": "str", "actor": "int64", "time_s": "float64"},
    "boxes": {"clip_id": "str", "frame": "int32", "actor": "int16", "label": "str"}
    | dict.fromkeys(("x0", "y0", "x1", "y1", "vx", "vy"), "float32"),
}


def truth_tables(rows: dict[str, list[Rows]]) -> dict[str, pd.DataFrame]:
    """Data frames of all clips' rows; tables without a row keep their columns."""
    tables = {name: pd.DataFrame(rows[name]) for name in ("truth", "actors", "onsets")}
    parts = rows["boxes"]
    tables["boxes"] = pd.DataFrame(
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
    )
    for name, columns in _EMPTY.items():
        if tables[name].empty:
            tables[name] = pd.DataFrame({column: pd.Series(dtype=dtype) for column, dtype in columns.items()})
    return tables


def analytic_flow(scene: Scene, frame: int) -> np.ndarray:
    """Forward optical flow from ``frame`` to the next, exact up to occlusion: ``(2, H, W)`` float32, (dx, dy) in
    pixels.

    Each pixel follows the front-most actor that covers it (an affine motion: translation, growth, squash, rotation),
    or the camera.

    Raises:
        ValueError: ``frame`` has no successor.
    """
    if not 0 <= frame < scene.num_frames - 1:
        raise ValueError(f"frame must lie in [0, {scene.num_frames - 2}] to have a successor, got {frame}")
    times = np.array([frame, frame + 1]) / scene.fps
    line = np.arange(scene.size, dtype=np.float32) + 0.5
    px, py = np.meshgrid(line, line)
    pan = np.diff(np.stack(camera_offset(scene.camera, times, scene.size)), axis=1)[:, 0]
    flow = np.broadcast_to(-pan[:, None, None], (2, scene.size, scene.size)).astype(np.float32)
    for actor in scene.actors:
        first, last = live_frames(actor, scene)
        if not first <= frame < last:
            continue
        course = track(actor, scene, times)
        now = track(actor, scene, times[:1])
        dx, dy = (px - now.x[0])[None], (py - now.centre_y[0])[None]
        u, v = body_coordinates(actor, now, dx.astype(np.float32), dy.astype(np.float32))
        covered = signed_distance(actor.shape, u, v)[0] <= 0
        c, s = np.cos(course.angle[1]), np.sin(course.angle[1])
        x = course.x[1] + (c * u[0] - s * v[0]) * course.radius[1] / course.stretch[1]
        y = course.centre_y[1] + (s * u[0] + c * v[0]) * course.radius[1] * course.stretch[1]
        flow[:, covered] = np.stack([x - px, y - py])[:, covered]
    return flow
