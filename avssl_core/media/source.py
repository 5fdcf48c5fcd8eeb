"""Where media comes from: a path, a byte string, or a member of an uncompressed tar shard.

Shards are WebDataset-compatible tars, but unlike a WebDataset reader nothing is streamed or unpacked: the index holds
each member's offset and length, and the container is opened inside the tar through a file object bounded to the member.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import av
from av.container import InputContainer

from avssl_core.media.errors import NotMediaError

# Only true containers. libav would otherwise read a text file as an ANSI animation, a playlist that names other files
# or hosts, or a headerless stream without timestamps.
_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf,nut,mxf,dv,wav,w64,aiff,mp3,flac,aac,caf"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}


@dataclass(frozen=True)
class TarMember:
    """One file inside an uncompressed tar, addressed by position.

    Attributes:
        path: the tar.
        offset: first byte of the member's data (``tarfile.TarInfo.offset_data``), ≥ 0.
        length: bytes of data, ≥ 0.
    """

    path: str
    offset: int
    length: int


Source: TypeAlias = str | Path | bytes | TarMember


class BoundedFile(io.RawIOBase):
    """The bytes ``[offset, offset + length)`` of a file, as a read-only file of its own."""

    def __init__(self, path: str, offset: int, length: int) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._offset, self._length, self._position = offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to byte {base + offset} of a tar member")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        remaining = max(0, self._length - self._position)
        size = remaining if size is None or size < 0 else min(size, remaining)
        os.lseek(self._fd, self._offset + self._position, os.SEEK_SET)
        data = os.read(self._fd, size) if size else b""
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def describe(source: Source) -> str:
    """Name a source for people: the path, ``path[offset:end]`` of a tar member, or the size of a byte string."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, TarMember):
        return f"{source.path}[{source.offset}:{source.offset + source.length}]"
    return os.fspath(source)


def open_container(source: Source) -> tuple[InputContainer, BoundedFile | None]:
    """Open a source for demuxing.

    Returns:
        The container, and the file object behind it that the caller must close after it (tar members only).

    Raises:
        NotMediaError: the source is missing, empty, not a regular file, or not a media container.
    """
    name = describe(source)
    handle: BoundedFile | None = None
    target: str | io.BytesIO | BoundedFile
    if isinstance(source, bytes):
        _require_bytes(name, len(source))
        target, head = io.BytesIO(source), source[:12]
    elif isinstance(source, TarMember):
        _require_inside(source, _require_file(name, source.path))
        target = handle = BoundedFile(source.path, source.offset, source.length)
        head = handle.read(12)
        handle.seek(0)
    else:
        _require_bytes(name, _require_file(name, name))
        target = f"file:{name}"  # or a colon in the file name would be read as a protocol
        head = _head(name)
    kind = _kind(head)
    try:
        # Tags in old files are often not UTF-8; they do not concern us.
        opened = av.open(target, "r", format=kind, container_options=_OPTIONS, metadata_errors="replace")
        return opened, handle
    except (av.FFmpegError, OSError, ValueError) as error:
        if handle is not None:
            handle.close()
        raise NotMediaError(
            name,
            f"not a media container that can be opened ({_plain(error)}); expected a complete mp4, webm, mkv, avi, "
            "mpeg, ogg or wav file. An mp4 that lost its end has lost its index: copy it again.",
        ) from error


def raw_mpeg4(source: Source) -> bytes | None:
    """The bytes of a raw MPEG-4 Part 2 stream; ``None`` where the source is something else.

    Raises:
        NotMediaError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return source if _is_raw_mpeg4(source[:4]) else None
    name = describe(source)
    path, offset, length = (
        (source.path, source.offset, source.length) if isinstance(source, TarMember) else (name, 0, -1)
    )
    size = _require_file(name, path)
    if isinstance(source, TarMember):
        _require_inside(source, size)
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            head = file.read(4) or b""
            return head + file.read(length - len(head) if length >= 0 else -1) if _is_raw_mpeg4(head) else None
    except OSError as error:
        raise NotMediaError(name, f"cannot be read ({_plain(error)}); check links and permissions") from error


def _is_raw_mpeg4(head: bytes) -> bool:
    """A start code of a visual sequence, object or layer; an MPEG program stream begins with others."""
    return len(head) == 4 and head[:3] == b"\x00\x00\x01" and (head[3] in (0xB0, 0xB5) or head[3] < 0x30)


def _head(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(12) or b""
    except OSError as error:
        raise NotMediaError(path, f"cannot be read ({_plain(error)}); check links and permissions") from error


def _kind(head: bytes) -> str | None:
    """The container by its first bytes, where they leave no doubt: asking all of libav's demuxers takes longer."""
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


def _require_file(name: str, path: str) -> int:
    """Size of a regular file, or an error that says what stands at the path instead."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise NotMediaError(
            name, "no such file; it was moved or deleted, or the index is stale: index again"
        ) from error
    except (OSError, ValueError) as error:
        raise NotMediaError(name, f"cannot be read ({_plain(error)}); check links and permissions") from error
    if not stat.S_ISREG(status.st_mode):
        # A pipe or device would block for ever.
        raise NotMediaError(name, "not a regular file; pass the path of one media file")
    return status.st_size


def _require_bytes(name: str, size: int) -> None:
    if size == 0:
        raise NotMediaError(name, "zero bytes; the file was never written or the download failed: fetch it again")


def _require_inside(member: TarMember, size: int) -> None:
    name = describe(member)
    _require_bytes(name, member.length)
    if member.offset < 0 or member.length < 0 or member.offset + member.length > size:
        raise NotMediaError(name, f"lies outside the tar, which has {size} bytes; the index is stale: index again")


def _plain(error: Exception) -> str:
    """libav's own words, without the path that the message around it names already."""
    return str(getattr(error, "strerror", None) or error)
