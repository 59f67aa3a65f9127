"""Captions of scenes, honest about objects and unreliable about relations, as captions in the wild are.

Two objects are joined by "and" or by a relation word that is drawn without a look at the picture, and made wrong on
purpose in `WRONG` of the cases: the text-to-image models learn what objects look like but nothing about where they
stand, which is the weakness that learned steering repairs.
"""

from __future__ import annotations

from random import Random

from attnsteer.world.scene import RELATIONS, Scene, Shape, random_scene, relations_between

WRONG = 0.3
"""Share of relation words that are false on purpose; the others hold by chance, in about 36 % of the cases."""
OBJECTS = {1: 0.4, 2: 0.3, 3: 0.17, 4: 0.13}
"""Share of training scenes with so many objects."""

WORDS = (
    "a an the of and with next to in on is picture photo shape left right above below near front behind "
    "circle square triangle red green blue yellow outline blurry no without not solid sharp one two three , ."
).split()


def phrase(shape: Shape, *, colour: bool = True, attribute: bool = True, noun: bool = True) -> str:
    """The noun phrase of an object, such as "a blurry red circle"; the switches leave parts out."""
    words = [shape.colour if colour else "", shape.shape if noun else "shape"]
    if attribute and shape.attribute == "outline":
        words.insert(1, "outline")
    if attribute and shape.attribute == "blurry":
        words.insert(0, "blurry")
    words = [word for word in words if word]
    return ("an " if words[0][0] == "o" else "a ") + " ".join(words)


def caption(scene: Scene, random: Random) -> str:
    """One caption of a scene of one or more objects; now and then it leaves out colours or attributes."""
    if len(scene) == 1:
        return _single(scene[0], random)
    text = phrase(scene[0], attribute=random.random() < 0.8)
    for subject, reference in zip(scene, scene[1:], strict=False):
        text += _joint(subject, reference, random) + phrase(reference, attribute=random.random() < 0.8)
    return text


def _single(shape: Shape, random: Random) -> str:
    kind = random.random()
    if kind < 0.05:
        return shape.colour
    if kind < 0.2 and shape.attribute:
        return shape.attribute
    if kind < 0.25:
        return phrase(shape, noun=False, attribute=False)
    return phrase(shape, colour=random.random() < 0.7, attribute=random.random() < 0.4)


def _joint(subject: Shape, reference: Shape, random: Random) -> str:
    if random.random() < 0.4:
        return random.choice((" and ", " and ", ", ", " with ", " next to "))
    relation = random.choice(RELATIONS)
    if random.random() < WRONG:
        relation = random.choice([name for name in RELATIONS if name not in relations_between(subject, reference)])
    return f" {relation} "


def random_pair(random: Random) -> tuple[Scene, str]:
    """A scene of one to four objects with its caption: one draw of the training distribution."""
    objects = random.choices(list(OBJECTS), list(OBJECTS.values()))[0]
    scene = random_scene(random, objects, attribute_probability=0.6 if objects == 1 else 0.06)
    return scene, caption(scene, random)
