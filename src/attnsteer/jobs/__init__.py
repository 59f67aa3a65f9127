"""Work that does not fit one process: shards, resuming, and engines that run them. Loads neither torch nor ray."""

from attnsteer.jobs.engines import Engine, Local, Ranks, make_engine
from attnsteer.jobs.folder import RunFolder, read_records
from attnsteer.jobs.job import Job, Outcome, run_job
from attnsteer.jobs.shards import Record

__all__ = [
    "Engine",
    "Job",
    "Local",
    "Outcome",
    "Ranks",
    "Record",
    "RunFolder",
    "make_engine",
    "read_records",
    "run_job",
]
