"""Any folder of videos as films that can be read by groups of pictures, without decoding them whole.

Learning from compressed video (CoViAR, IMRNet, …) wants MPEG-4 Part 2 with an I picture every 12, no B pictures and a
constant quantiser. ``compress_folder`` makes that of whatever a folder or corpus holds: films that have the form
already are kept as they are, the others are transcoded, and each result is opened and taken apart before it counts.

    report = compress_folder("~/videos", "~/videos-gop12", size=(256, 340))
    corpus = open_corpus(report.out)
"""

from data_prep.compress.build import Report, compress_folder
from data_prep.compress.films import Settings, misfit, verify
from data_prep.compress.records import QUARANTINE_FILE, CompressError

__all__ = ["QUARANTINE_FILE", "CompressError", "Report", "Settings", "compress_folder", "misfit", "verify"]
