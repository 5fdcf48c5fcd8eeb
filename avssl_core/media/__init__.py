"""Files to tensors and back: the only room that knows containers and codecs."""

from avssl_core.media.errors import DecodeError, MediaError, NoAudioError, NotMediaError, NoVideoError, WindowError
from avssl_core.media.probe import AudioInfo, MediaInfo, VideoInfo
from avssl_core.media.reader import AVClip, MediaReader, VideoWindow, probe, read_all, read_clip
from avssl_core.media.source import Source, TarMember
from avssl_core.media.writer import write_clip

__all__ = [
    "AVClip",
    "AudioInfo",
    "DecodeError",
    "MediaError",
    "MediaInfo",
    "MediaReader",
    "NoAudioError",
    "NoVideoError",
    "NotMediaError",
    "Source",
    "TarMember",
    "VideoInfo",
    "VideoWindow",
    "WindowError",
    "probe",
    "read_all",
    "read_clip",
    "write_clip",
]
