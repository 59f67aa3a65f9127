"""Prompts with one to three relations among two to five objects, drawn from a seed."""

from collections.abc import Sequence
from random import Random
from typing import Final

from attnsteer.evaluate.prompts.nouns import COCO, PLURAL, with_article
from attnsteer.evaluate.prompts.task import Task
from attnsteer.evaluate.scoring.chains import Clause
from attnsteer.evaluate.scoring.geneval import RELATIONS

LINKS: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "2 objects, 1 relation": ((0, 1),),
    "3 objects, 2 relations": ((0, 1), (1, 2)),
    "4 objects, 2 relations": ((0, 1), (2, 3)),
    "4 objects, 3 relations": ((0, 1), (1, 2), (2, 3)),
    "5 objects, 3 relations": ((0, 1), (1, 2), (3, 4)),
}
"""Which objects are related, as in the published multi-relation prompts (arXiv:2509.02295)."""


def chain_prompts(
    per_kind: int = 100, seed: int = 0, *, nouns: Sequence[str] = COCO, kinds: Sequence[str] = tuple(LINKS)
) -> list[Task]:
    """Prompts such as "a photo of a dog above a cup to the left of a bed and a cow below a car".

    Objects differ, and so do the relations of one prompt.

    Args:
        per_kind: Prompts of each kind.
        seed: Of the draw; the published prompts were drawn without one and cannot be had again.
        nouns: At least as many as a kind needs.
        kinds: Keys of `LINKS`.

    Raises: ValueError for an unknown kind or too few nouns.
    """
    unknown = [kind for kind in kinds if kind not in LINKS]
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}; there are: {'; '.join(LINKS)}")
    usable, tasks = [noun for noun in nouns if noun not in PLURAL], []
    for kind in kinds:
        links, random = LINKS[kind], Random(f"chains-{seed}-{kind}")
        count = 1 + max(number for link in links for number in link)
        if len(usable) < count:
            raise ValueError(f"{kind!r} needs {count} nouns, got {len(usable)}")
        for _ in range(per_kind):
            objects, words = random.sample(usable, count), random.sample(RELATIONS, len(links))
            clauses = [(objects[a], word, objects[b]) for (a, b), word in zip(links, words, strict=True)]
            tasks.append(chain_task(f"a photo of {chain_text(clauses)}", clauses, kind))
    return tasks


def chain_text(clauses: Sequence[Clause]) -> str:
    """The words of a chain: a clause that begins with the last object named goes on, another is joined by "and"."""
    text, last = "", ""
    for subject, relation, reference in clauses:
        if subject != last:
            text += f"{' and ' if text else ''}{with_article(subject)}"
        text += f" {relation} {with_article(reference)}"
        last = reference
    return text


def chain_task(prompt: str, clauses: Sequence[Clause], kind: str) -> Task:
    """The task of a chain."""
    labels = tuple(dict.fromkeys(label for subject, _, reference in clauses for label in (subject, reference)))
    return Task(prompt, {"clauses": [list(clause) for clause in clauses]}, labels, kind)
