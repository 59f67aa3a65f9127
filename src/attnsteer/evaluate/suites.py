"""The suites: prompts, the rule that judges them, and the detector that the rule was published with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attnsteer.evaluate.prompts import Task
from attnsteer.evaluate.prompts.chains import chain_prompts
from attnsteer.evaluate.prompts.negatives import own_negative_prompts, read_neggenbench
from attnsteer.evaluate.prompts.position import own_position_prompts, read_geneval, read_visor, visor_prompts
from attnsteer.evaluate.prompts.shapes import (
    shapes_chains,
    shapes_negatives,
    shapes_pairs,
    shapes_relation_negatives,
    shapes_spatial,
)
from attnsteer.evaluate.prompts.shapes_clips import shapes_clip_negatives
from attnsteer.evaluate.prompts.t2i_compbench import read_t2i_compbench
from attnsteer.evaluate.scoring import Box, Verdict
from attnsteer.evaluate.scoring.chains import judge_chain
from attnsteer.evaluate.scoring.geneval import judge_position
from attnsteer.evaluate.scoring.negatives import judge_negative
from attnsteer.evaluate.scoring.relation_negatives import judge_relation_negative
from attnsteer.evaluate.scoring.t2i_compbench import judge_spatial
from attnsteer.evaluate.scoring.visor import judge_visor

SHAPES: Final = "shapes-"
"""Names of the suites for the embedded models begin like this."""
TWINS: Final = {
    "geneval-position": "shapes-position", "t2i-compbench-spatial": "shapes-spatial", "visor": "shapes-visor",
    "chains": "shapes-chains", "negatives": "shapes-negatives", "fidelity": "shapes-fidelity",
}  # fmt: skip
"""Suites, and the same for the embedded models with the exact detector."""
Judge = Callable[[Task, Sequence[Box], tuple[int, int]], Verdict]


@dataclass(frozen=True)
class Suite:
    """A suite.

    Attributes:
        name: For the command line.
        title: For people.
        rule: How a picture is judged, in a sentence.
        detector: The detector that is used unless another is named.
        samples: Pictures of each prompt unless another number is given.
        own: Draws `count` prompts (per kind, where there are kinds) from a seed; None if a file is needed.
        read: Reads the published prompt file; None if there is none.
        judge: Judges a task's boxes on a picture of (width, height).
        headline: What the share or mean at the top is.
        substitute: Whether the detector stands for a published one that transformers does not have.
    """

    name: str
    title: str
    rule: str
    detector: str
    samples: int
    own: Callable[[int | None, int], list[Task]] | None
    read: Callable[[str | Path], list[Task]] | None
    judge: Judge
    headline: str = "right"
    substitute: bool = False


def _position(task: Task, boxes: Sequence[Box], size: tuple[int, int]) -> Verdict:
    return judge_position(boxes, **task.asked)


def _visor(task: Task, boxes: Sequence[Box], size: tuple[int, int]) -> Verdict:
    return judge_visor(boxes, **task.asked)


def _spatial(task: Task, boxes: Sequence[Box], size: tuple[int, int]) -> Verdict:
    return judge_spatial(boxes, **task.asked, size=size)


def _chain(task: Task, boxes: Sequence[Box], size: tuple[int, int]) -> Verdict:
    return judge_chain(boxes, [(clause[0], clause[1], clause[2]) for clause in task.asked["clauses"]])


def _negative(task: Task, boxes: Sequence[Box], size: tuple[int, int]) -> Verdict:
    return judge_negative(boxes, task.asked["subject"], task.asked["unwanted"])


def _relation_negative(task: Task, boxes: Sequence[Box], size: tuple[int, int]) -> Verdict:
    return judge_relation_negative(boxes, **task.asked)


def _counted(draw: Callable[..., list[Task]]) -> Callable[[int | None, int], list[Task]]:
    return lambda count, seed: draw(seed=seed) if count is None else draw(count, seed)


_GENEVAL = "GenEval's rule: both objects found, and the most confident box of each stands as asked"
_CHAINS = "GenEval's rule for every pair of the prompt"
_T2I = "T2I-CompBench's 2-D rule: half the confidences, half the position, zero below one half"
_VISOR = "VISOR's rule: any two boxes of the objects whose centres stand as asked"
_RELATION_NEGATIVE = "GenEval's rule, and the unwanted thing is not found"
_NEGATIVE = "the subject is found, and the unwanted thing is not"
_CLIP_NEGATIVE = (
    "the clip shows the shape, colour and motion of its prompt, and nothing in it is or does what is unwanted"
)

SUITES: Final[Mapping[str, Suite]] = {
    suite.name: suite
    for suite in (
        Suite("geneval-position", "GenEval position", _GENEVAL, "mask2former", 4, _counted(own_position_prompts),
              read_geneval, _position),
        Suite("t2i-compbench-spatial", "T2I-CompBench spatial", _T2I, "owlv2", 10, None, read_t2i_compbench, _spatial,
              "mean score", substitute=True),
        Suite("visor", "VISOR", _VISOR, "owlvit", 4, _counted(visor_prompts), read_visor,
              _visor),
        Suite("chains", "Chains of relations", _CHAINS, "owlv2", 1, _counted(chain_prompts), None, _chain),
        Suite("negatives", "Negative prompts", _NEGATIVE, "owlv2", 4,
              lambda count, seed: own_negative_prompts()[:count], read_neggenbench, _negative),
        Suite("shapes-position", "Shapes: position", _GENEVAL, "shapes", 1, _counted(shapes_pairs), None, _position),
        Suite("shapes-spatial", "Shapes: T2I-CompBench spatial", _T2I, "shapes", 1, _counted(shapes_spatial), None,
              _spatial, "mean score"),
        Suite("shapes-visor", "Shapes: VISOR", _VISOR, "shapes", 4, _counted(shapes_pairs), None, _visor),
        Suite("shapes-chains", "Shapes: chains of relations", _CHAINS, "shapes", 1, _counted(shapes_chains), None,
              _chain),
        Suite("shapes-negatives", "Shapes: negative prompts", _NEGATIVE, "shapes", 1,
              lambda count, seed: shapes_negatives(32 if count is None else count), None, _negative),
        Suite("shapes-clip-negatives", "Shapes: negative prompts in clips", _CLIP_NEGATIVE, "shapes-clips", 1,
              _counted(shapes_clip_negatives), None, _negative),
        Suite("shapes-relation-negatives", "Shapes: relation and negative prompt", _RELATION_NEGATIVE, "shapes", 1,
              _counted(shapes_relation_negatives), None, _relation_negative),
    )
}  # fmt: skip


def find_suite(name: str) -> Suite:
    """A suite by name.

    Raises: ValueError for an unknown name.
    """
    if name not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {name!r}")
    return SUITES[name]


def suite_tasks(suite: Suite, prompts: str | Path | None, count: int | None, seed: int) -> list[Task]:
    """The tasks of a suite: from its published file if one is given, otherwise drawn.

    Args:
        suite: The suite.
        prompts: The published prompt file.
        count: Prompts, per kind where there are kinds; the first ones of a file. None takes the suite's own number.
        seed: Of the draw.

    Raises: ValueError if a file is needed but not given, or given but not used, or if there are fewer than `count`.
    """
    if prompts is not None:
        if suite.read is None:
            raise ValueError(f"{suite.name} draws its own prompts; leave the prompt file out")
        tasks = suite.read(prompts)[:count]
    elif suite.own is None:
        raise ValueError(f"{suite.name} reads its published prompt file: pass --prompts FILE")
    else:
        tasks = suite.own(count, seed)
    if count is not None and len(tasks) < count:
        where = "" if prompts is None else " in this file"
        raise ValueError(
            f"{suite.name} has {len(tasks)} prompts{where}, not the {count} asked for: ask for fewer prompts, and for "
            "more pictures of each with --samples"
        )
    return tasks


def items_of(suite: Suite, tasks: Sequence[Task], samples: int, first_seed: int) -> list[dict[str, Any]]:
    """Items of a job: each picture of each prompt, with a seed of its own."""
    items: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        for sample in range(samples):
            items.append(
                {
                    "id": f"{suite.name}-{number:05d}-{sample}",
                    "prompt": task.prompt,
                    "asked": dict(task.asked),
                    "labels": list(task.labels),
                    "kind": task.kind,
                    "negative": task.negative,
                    "group": number,
                    "number": len(items),
                    "seed": first_seed + number * samples + sample,
                }
            )
    return items


def task_of(item: Mapping[str, Any]) -> Task:
    """The task of an item."""
    return Task(item["prompt"], item["asked"], tuple(item["labels"]), item["kind"], item["negative"])
