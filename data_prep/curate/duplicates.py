"""The same clip twice: by content, and by what it looks and sounds like.

A clip that was uploaded twice, cut from the same film, or encoded again, would count twice in a set that should be
diverse. ``same`` finds films whose bytes are equal. ``near`` also finds clips whose pictures *and* sound have nearly
the same signature (:mod:`~data_prep.curate.shots`): pictures alone would take an overdubbed copy for the original, and
it is exactly the difference between these two that curation is about.

Nothing compares all clips with all. By the pigeonhole principle, two signatures that differ in at most ``d`` bits agree
in at least one of ``d + 1`` pieces, so that only clips that share a piece are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.curate.candidates import Refusal
from data_prep.curate.clips import Clip

Rule = Literal["near", "same", "keep"]
RULES = ("near", "same", "keep")

# Bits that may differ, of 256 and of 64. Real sentences, encoded again at half the size and quantiser 14, changed by up
# to 12 and 5; different sentences of that one talker, whose pictures are much alike, differ in 8 or more bits of sound.
PICTURE_BITS = 12
SOUND_BITS = 6
_TELLING = 16  # signs of either kind that a signature must have: that of a black picture says nothing
_COMPARED = 1000  # clips of a piece; where more share it, as black borders do, it tells nothing either


def drop_duplicates(clips: Sequence[Clip], rule: Rule) -> tuple[list[Clip], list[Refusal]]:
    """Keep the first clip of each kind.

    Args:
        clips: in the order in which the first is kept.
        rule: ``"same"`` bytes, also ``"near"`` ones, or ``"keep"`` all.

    Returns:
        Clips, and refusals that name the clip that is kept.
    """
    if rule == "keep":
        return list(clips), []
    twins = _same(clips)
    if rule == "near":
        twins |= _near([clip for clip in clips if clip.clip_id not in twins])
    refused = [(clip.clip_id, clip.film.uri, "unique", twins[clip.clip_id]) for clip in clips if clip.clip_id in twins]
    return [clip for clip in clips if clip.clip_id not in twins], refused


def _same(clips: Iterable[Clip]) -> dict[str, str]:
    first: dict[tuple[str, float, float], str] = {}
    twins = {}
    for clip in clips:
        original = first.setdefault((clip.digest, clip.start_s, clip.length_s), clip.clip_id)
        if original != clip.clip_id:
            twins[clip.clip_id] = f"has the same bytes as {original}"
    return twins


def _near(clips: Sequence[Clip]) -> dict[str, str]:
    pictures, sounds = (_bits(clip.picture for clip in clips), _bits(clip.sound for clip in clips))
    ones = pictures.sum(axis=1)
    telling = (ones >= _TELLING) & (ones <= pictures.shape[1] - _TELLING)
    pieces = np.array_split(np.arange(pictures.shape[1]), PICTURE_BITS + 1)
    kept: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    twins = {}
    for number in np.flatnonzero(telling).tolist():
        places = [(piece, np.packbits(pictures[number, bits]).tobytes()) for piece, bits in enumerate(pieces)]
        others = np.array(sorted({other for place in places for other in kept[place]}), dtype=np.int64)
        differ = (pictures[others] != pictures[number]).sum(axis=1) <= PICTURE_BITS
        differ &= (sounds[others] != sounds[number]).sum(axis=1) <= SOUND_BITS
        if differ.any():
            twins[clips[number].clip_id] = f"looks and sounds like {clips[others[differ.argmax()]].clip_id}"
            continue
        for place in places:
            if len(kept[place]) < _COMPARED:
                kept[place].append(number)
    return twins


def _bits(texts: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Signatures, ``(clips, bits)`` of 0 and 1."""
    rows = [np.frombuffer(bytes.fromhex(text), dtype=np.uint8) for text in texts]
    return np.unpackbits(np.stack(rows), axis=1) if rows else np.zeros((0, 1), dtype=np.uint8)
