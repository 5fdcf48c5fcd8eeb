"""Videos and alignments in GRID's published archives, or in folders where somebody unpacked them; and their
checksums.

The corpus's pages give a zip of videos a speaker (``s1.mpg_vcd.zip``, in the newer release ``s1.zip``) and tars, zips
or folders of alignments (``s1.align``, ``align/bbaf2n.align``, ``alignments/s1/bbaf2n.align``). Layouts differ
between mirrors, so files are known by their own names, and the speaker by the innermost part of the path that names
one.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from avssl_core.media import TarMember
from data_prep.grid.words import GridError, speaker_of

VIDEO_SUFFIXES = (".mpg", ".mpeg", ".mp4", ".avi")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".align")
Key = tuple[str, str]  # (speaker, sentence): ("s1", "bbaf2n")


@dataclass(frozen=True)
class Place:
    """Where one file lies: a path, or a member of a zip or of an uncompressed tar."""

    path: str
    member: str = ""
    offset: int = -1
    length: int = -1

    def source(self) -> Path | bytes | TarMember:
        """What the media readers take."""
        if not self.member:
            return Path(self.path)
        if self.offset >= 0:
            return TarMember(self.path, self.offset, self.length)
        return _zip(self.path).read(self.member)

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path


@dataclass
class Found:
    """What the sources hold: videos and alignments by speaker and sentence, and the archives they came from."""

    videos: dict[Key, Place] = field(default_factory=dict)
    alignments: dict[Key, str] = field(default_factory=dict)
    archives: list[Path] = field(default_factory=list)

    def alignment(self, key: Key) -> str | None:
        """The alignment of a sentence; one without a speaker in its path serves where there is one speaker alone."""
        speakers = {speaker for speaker, _ in self.videos}
        alone = self.alignments.get(("", key[1])) if len(speakers) == 1 else None
        return self.alignments.get(key, alone)


def scan(sources: Iterable[str | Path]) -> Found:
    """Find videos and alignments in archives and folders (archives inside folders included).

    Raises:
        FileNotFoundError: a source does not exist.
        GridError: a source is no archive, one sentence of a speaker is there twice, or a video has no speaker.
    """
    found = Found()
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist; give archives of the GRID corpus or folders with them")
        for path, base in _files(source):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                _add_video(found, Place(str(path)), f"{base}/{path.name}")
            elif zipfile.is_zipfile(path):
                _scan_zip(found, path)
            elif path.suffix.lower() in _ARCHIVES and tarfile.is_tarfile(path):
                _scan_tar(found, path)
            elif path.suffix.lower() == ".align":
                _add_alignment(found, path.read_bytes(), f"{base}/{path.name}")
            elif path == source:
                raise GridError(f"{path} is neither a zip nor a tar archive; it may be an incomplete download")
    return found


def checksum(path: str | Path, *, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def read_checksums(path: str | Path) -> dict[str, str]:
    """A list as ``sha256sum`` and ``md5sum`` write it: file name → digest.

    Raises:
        GridError: a line is not of that form.
    """
    digests = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.strip():
            digest, _, name = line.strip().partition(" ")
            if len(digest) not in (32, 64) or not name.strip():
                raise GridError(f"{path}: {line!r}; expected 'digest  file name' with an MD5 or SHA-256 digest")
            digests[PurePosixPath(name.strip().lstrip("*")).name] = digest.lower()
    return digests


def verify(archives: Iterable[Path], expected: Mapping[str, str]) -> None:
    """Compare archives with known digests (MD5 or SHA-256, told by their length); archives not listed pass.

    Raises:
        GridError: a digest differs.
    """
    for path in archives:
        wanted = expected.get(path.name)
        if wanted is None:
            continue
        actual = checksum(path, algorithm="md5" if len(wanted) == 32 else "sha256")
        if actual != wanted.lower():
            raise GridError(f"{path}: checksum {actual}, expected {wanted}; download it again")


def _files(source: Path) -> Iterator[tuple[Path, str]]:
    """Every file of a source in a stable order, with the path that may name its speaker."""
    if source.is_file():
        yield source, source.name
        return
    for folder, subfolders, names in os.walk(source):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = Path(folder).relative_to(source).as_posix()
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name), f"{source.name}/{inside}"


def _scan_zip(found: Found, path: Path) -> None:
    found.archives.append(path)
    archive = _zip(str(path))
    for info in archive.infolist():
        if info.is_dir() or _is_clutter(info.filename):
            continue
        suffix = PurePosixPath(info.filename).suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            _add_video(found, Place(str(path), info.filename), f"{path.name}/{info.filename}")
        elif suffix == ".align":
            _add_alignment(found, archive.read(info), f"{path.name}/{info.filename}")


def _scan_tar(found: Found, path: Path) -> None:
    found.archives.append(path)
    with tarfile.open(path) as archive:
        for member in archive:
            suffix = PurePosixPath(member.name).suffix.lower()
            if not member.isreg() or _is_clutter(member.name):
                continue
            if suffix in VIDEO_SUFFIXES:
                if not _uncompressed(path):
                    raise GridError(
                        f"{path}: videos inside a compressed tar cannot be read one by one; unpack it first"
                    )
                _add_video(
                    found, Place(str(path), member.name, member.offset_data, member.size), f"{path.name}/{member.name}"
                )
            elif suffix == ".align":
                file = archive.extractfile(member)
                _add_alignment(found, file.read() if file else b"", f"{path.name}/{member.name}")


def _add_video(found: Found, place: Place, name: str) -> None:
    speaker, sentence = speaker_of(name), _sentence(name)
    if not speaker:
        raise GridError(f"{place}: no part of the path names a speaker; put the videos into a folder named s1, s2, …")
    if (speaker, sentence) in found.videos:
        other = found.videos[speaker, sentence]
        raise GridError(
            f"{speaker} {sentence} is there twice, as {place} and as {other}; give one quality of the videos"
        )
    found.videos[speaker, sentence] = place


def _add_alignment(found: Found, content: bytes, name: str) -> None:
    found.alignments[speaker_of(name), _sentence(name)] = content.decode("ascii", errors="replace")


def _sentence(name: str) -> str:
    return PurePosixPath(name).name.split(".")[0].lower().rpartition("_")[2]


def _is_clutter(name: str) -> bool:
    """What archivers of some systems add: ``__MACOSX/._bbaf2n.mpg``."""
    return "__MACOSX" in name or PurePosixPath(name).name.startswith(".")


def _uncompressed(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.TarError:
        return False


@lru_cache(maxsize=4)
def _zip(path: str) -> zipfile.ZipFile:
    """Kept open: reading the directory of a thousand members for each of them would take longer than the videos."""
    return zipfile.ZipFile(path)
