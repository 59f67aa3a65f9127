"""Doing all tasks, in several processes, with one bar over everything that says how much time is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Final

from tqdm import tqdm

from attnsteer.world.claims.task import Task

POLL: Final = 2.0
"""Seconds between two looks at what the processes have done."""

LOGGED: Final = 60.0
"""Seconds between two lines of the bar where it goes to a file and not to a terminal."""


def all_tasks(groups: Iterable[Sequence[Task]]) -> dict[str, Task]:
    """The tasks of several claims by name; the same task may come from several of them.

    Raises: ValueError if two different tasks share a name, or a task needs one that is not there.
    """
    tasks: dict[str, Task] = {}
    for task in (task for group in groups for task in group):
        if tasks.setdefault(task.name, task) != task:
            raise ValueError(f"two different tasks are called {task.name!r}; give one another name")
    for task in tasks.values():
        absent = [name for name in task.needs if name not in tasks]
        if absent:
            raise ValueError(f"the task {task.name!r} needs {absent[0]!r}, which no claim plans")
    return tasks


def do_all(tasks: Mapping[str, Task], work: Path, workers: int = 1, *, progress: bool = True) -> None:
    """Do what is not done yet of all tasks, those that others need first.

    Args:
        tasks: By name; see `all_tasks`.
        work: Folder of all runs, made if needed.
        workers: Processes, of one thread each; 1 works in this process.
        progress: Show a bar with the time that is left.

    Raises: ValueError for a number of workers below 1, or tasks that need each other in a circle; and whatever a task
        raises. What is finished stays.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    work.mkdir(parents=True, exist_ok=True)
    with _Bar(tasks, work, shown=progress) as bar:
        if workers > 1:
            _in_processes(tasks, work, workers, bar)
            return
        for task in _in_order(tasks):
            bar.show(task.name)
            with _named(task.name):
                task.run(work)
            bar.show(task.name)


def _in_order(tasks: Mapping[str, Task]) -> list[Task]:
    """Those that others need first."""
    ordered: dict[str, Task] = {}
    while len(ordered) < len(tasks):
        ready = [t for name, t in tasks.items() if name not in ordered and all(n in ordered for n in t.needs)]
        if not ready:
            raise ValueError(f"these tasks need each other: {', '.join(sorted(set(tasks) - set(ordered)))}")
        ordered |= {task.name: task for task in ready}
    return list(ordered.values())


def _in_processes(tasks: Mapping[str, Task], work: Path, workers: int, bar: _Bar) -> None:
    waiting, finished = _in_order(tasks), set[str]()
    running: dict[Future[None], str] = {}
    # Forked processes and torch's threads do not go together.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare_worker) as pool:
        try:
            while waiting or running:
                ready = [task for task in waiting if finished.issuperset(task.needs)]
                ready.sort(key=lambda task: -task.seconds)
                for task in ready[: workers - len(running)]:
                    running[pool.submit(task.run, work)] = task.name
                    waiting.remove(task)
                ended, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in ended:
                    with _named(running[future]):
                        future.result()
                    finished.add(running.pop(future))
                bar.show(", ".join(running.values()))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say with an error in which task it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the task {name!r}; what is finished stays, and the same command goes on from there")
        raise


def _prepare_worker() -> None:
    """Two processes of one thread each are faster than one of two; none goes on when the command was killed."""
    import torch

    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is None:
        return
    connection.wait([parent.sentinel])
    # What is unfinished is done again: results are written to a temporary file and renamed.
    os._exit(1)


class _Bar:
    """Counts the seconds that the finished work takes a small machine; the rate then tells the time left."""

    def __init__(self, tasks: Mapping[str, Task], work: Path, *, shown: bool) -> None:
        self.tasks, self.work, self.total = tasks, work, sum(task.seconds for task in tasks.values())
        self.seen = self._done()
        often = 0.1 if sys.stderr.isatty() else LOGGED
        self.bar = tqdm(
            total=self.total, initial=self.seen, disable=not shown, dynamic_ncols=True, mininterval=often,
            smoothing=0.02, bar_format="{percentage:3.0f} %|{bar}| {elapsed} done, about {remaining} left{postfix}",
        )  # fmt: skip

    def show(self, now: str) -> None:
        """Bring the bar up to date."""
        if self.bar.disable:
            return
        self.bar.set_postfix_str(now, refresh=False)
        done = self._done()
        self.bar.update(max(0.0, done - self.seen))
        self.seen = max(self.seen, done)

    def _done(self) -> float:
        return min(self.total, sum(task.seconds * task.done(self.work) for task in self.tasks.values()))

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
