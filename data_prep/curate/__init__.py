"""Any folder of videos as a set that was chosen to learn from: clips whose sight and sound tell of each other.

ACAV100M (https://arxiv.org/abs/2101.10803) chooses a hundred million clips out of the web's without a person looking at
one. ``curate_folder`` does the same with a folder, on one machine: candidates, clips, duplicates, features of frozen
networks, clusters, selection, and a manifest with a page to look at and listen to.

    settings = Settings(keep=0.25, video=Choice("video", weights="checkpoint.pt"), audio=…)
    report = curate_folder("~/videos", "~/videos-curated", settings)
"""

from data_prep.curate.clips import Cutting
from data_prep.curate.networks import Choice, Extractor
from data_prep.curate.pipeline import MANIFEST_FILE, PAGE_FILE, curate_folder
from data_prep.curate.scheduling import dask_mapper, scheduler_address
from data_prep.curate.select import Selecting
from data_prep.curate.settings import Report, Settings
from data_prep.curate.stages import CurateError

__all__ = [
    "MANIFEST_FILE",
    "PAGE_FILE",
    "Choice",
    "CurateError",
    "Cutting",
    "Extractor",
    "Report",
    "Selecting",
    "Settings",
    "curate_folder",
    "dask_mapper",
    "scheduler_address",
]
