"""Nouns: the 80 classes of COCO under GenEval's names, and articles."""

from typing import Final

COCO: Final = tuple(
    name.strip()
    for name in (
        "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,"
        " stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,"
        " backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,"
        " baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl,"
        " banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,"
        " potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard,"
        " cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,"
        " hair drier, toothbrush"
    ).split(",")
)
COCO_RENAMED: Final = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's own names of the classes that GenEval renamed."""
PLURAL: Final = ("skis", "scissors")


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
