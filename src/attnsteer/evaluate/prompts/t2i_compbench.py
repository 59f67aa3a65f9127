"""T2I-CompBench's spatial prompts, one a line: "a giraffe next to a lamp"."""

from pathlib import Path
from typing import Final

from attnsteer.evaluate.prompts.task import Task
from attnsteer.evaluate.scoring.t2i_compbench import class_of

LOCALITIES: Final = (
    "on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of",
)  # fmt: skip
"""In the order in which the published script looks for them."""


def read_t2i_compbench(path: str | Path) -> list[Task]:
    """Read a prompt file such as `spatial_val.txt`.

    Raises: ValueError if a line is not "a THING RELATION a THING".
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    tasks = [parse_prompt(line) for line in lines if line]
    if not tasks:
        raise ValueError(f"{path} holds no prompts")
    return tasks


def parse_prompt(prompt: str) -> Task:
    """Find relation, first and last noun of a prompt.

    Raises: ValueError if there is no known relation between two things.
    """
    relation = next((word for word in LOCALITIES if f" {word} " in prompt), None)
    subject, _, reference = prompt.rstrip(".").partition(f" {relation} ")
    nouns = [part.split()[-1] if part.split() else "" for part in (subject, reference)]
    if relation is None or not all(nouns):
        raise ValueError(f"{prompt!r} is not 'a THING RELATION a THING' with one of {', '.join(LOCALITIES)}")
    asked = {"subject": nouns[0], "relation": relation, "reference": nouns[1]}
    return Task(prompt, asked, tuple(dict.fromkeys(class_of(noun) for noun in nouns)), relation)
