"""Files to tensors and back: the only room that knows containers and codecs."""

from avssl_core.media.compressed import CompressedReader
from avssl_core.media.compressed_clip import CompressedClip, GopSpec
from avssl_core.media.errors import (
    DecodeError,
    MediaError,
    NoAudioError,
    NotMediaError,
    NoVideoError,
    StructureError,
    WindowError,
)
from avssl_core.media.gops import Gop, Structure
from avssl_core.media.probe import AudioInfo, MediaInfo, VideoInfo
from avssl_core.media.reader import AVClip, MediaReader, VideoWindow, probe, read_all, read_clip
from avssl_core.media.source import Source, TarMember
from avssl_core.media.transcode import Transcoded, transcode
from avssl_core.media.writer import write_clip

__all__ = [
    "AVClip",
    "AudioInfo",
    "CompressedClip",
    "CompressedReader",
    "DecodeError",
    "Gop",
    "GopSpec",
    "MediaError",
    "MediaInfo",
    "MediaReader",
    "NoAudioError",
    "NoVideoError",
    "NotMediaError",
    "Source",
    "Structure",
    "StructureError",
    "TarMember",
    "Transcoded",
    "VideoInfo",
    "VideoWindow",
    "WindowError",
    "probe",
    "read_all",
    "read_clip",
    "transcode",
    "write_clip",
]
