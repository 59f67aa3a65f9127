"""Triplets from files in the formats of GQA, the reward-model data and WordNet; prompts and splits."""

import json

import pytest

from attnsteer.evaluate.scoring.boxes import Box
from attnsteer.steering.data.gqa import BoxFilter, GQAFilter, gqa_triplets
from attnsteer.steering.data.nouns import singular
from attnsteer.steering.data.on_policy import DetectorLabels, sample_items, sample_prompt
from attnsteer.steering.data.orm import orm_triplets
from attnsteer.steering.data.triplets import (
    SplitSizes,
    Triplet,
    dual_prompts,
    published_split,
    split_by_picture,
    stated,
)
from attnsteer.steering.data.wordnet import WordNet
from datasets_on_disk import graph, thing, write_gqa, write_orm, write_wordnet

LEFT, RIGHT = "to the left of", "to the right of"


def told(pictures):
    return [(t.subject, t.relation, t.object) for triplets in pictures for t in triplets]


def test_gqa_triplets_are_those_of_the_scene_graphs(tmp_path):
    dog, cat = thing("dogs", 10, 40, 20, 20, {"2": LEFT}), thing("cat", 70, 40, 20, 20, {"1": RIGHT, "3": "near"})
    graphs = {
        "1": graph({"1": dog, "2": cat, "3": thing("bus", 40, 80, 10, 10, {"2": "below"}, ["white", "old"])}),
        "gone": graph({"1": dog, "2": cat}),
        "2": graph({"1": thing("dog", 0, 0, 9, 9, {"2": "above"}), "2": thing("dog", 0, 50, 9, 9)}),
    }
    write_gqa(tmp_path, graphs, missing={"gone"})
    pictures = gqa_triplets(tmp_path, GQAFilter())
    assert told(pictures) == [
        ("dog", LEFT, "cat"), ("cat", RIGHT, "dog"), ("bus", "below", "cat"), ("white", "is", "bus"),
    ]  # fmt: skip
    assert pictures[0][0].image == "images/1.jpg" and pictures[0][0].source == "1"
    assert ("white", "is", "bus") not in told(gqa_triplets(tmp_path, GQAFilter(attributes=())))


def test_relations_may_be_listed_or_numbered(tmp_path):
    """GQA's page describes a list and shows a dictionary."""
    dog = thing("dog", 10, 40, 20, 20, {"2": LEFT})
    numbered = {**dog, "relations": {"32452": {"name": LEFT, "object": "2"}}}
    for number, first in enumerate((dog, numbered)):
        write_gqa(tmp_path / str(number), {"1": graph({"1": first, "2": thing("cat", 70, 40, 20, 20)})})
        assert told(gqa_triplets(tmp_path / str(number), GQAFilter())) == [("dog", LEFT, "cat")]


def test_the_published_filter_drops_kinds_of_things_in_the_picture(tmp_path):
    wordnet = WordNet(write_wordnet(tmp_path / "wordnet"))
    assert wordnet.related("dog", "animal") and wordnet.related("animal", "dog")
    assert wordnet.related("poodle", "animal")  # two levels
    assert not wordnet.related("poodle", "thing") and not wordnet.related("dog", "chair")
    assert not wordnet.related("dog", "unheard of")
    relations = {"2": LEFT}
    clear = graph({"1": thing("poodle", 0, 0, 9, 9, relations), "2": thing("chair", 50, 0, 9, 9)})
    with_animal = graph({**clear["objects"], "3": thing("animal", 0, 50, 9, 9)})
    write_gqa(tmp_path, {"1": clear, "2": with_animal})
    kept = gqa_triplets(tmp_path, GQAFilter(wordnet=wordnet))
    assert [triplet.source for triplets in kept for triplet in triplets] == ["1"]
    assert len(gqa_triplets(tmp_path, GQAFilter())) == 2


@pytest.mark.parametrize(
    ("first", "second", "relation", "more", "kept"),
    [
        ((10, 40, 20, 20), (70, 40, 20, 20), LEFT, {}, True),
        ((10, 40, 20, 20), (70, 40, 20, 20), RIGHT, {}, False),  # the boxes show the opposite
        ((10, 40, 60, 20), (40, 40, 50, 20), LEFT, {}, False),  # overlap
        ((10, 40, 4, 20), (70, 40, 20, 20), LEFT, {}, False),  # too narrow
        ((10, 10, 20, 20), (70, 70, 20, 20), LEFT, {}, False),  # a diagonal: above as well
        ((10, 40, 20, 20), (70, 40, 20, 20), LEFT, {"3": thing("dog", 40, 0, 20, 20)}, False),  # another dog
        ((10, 40, 20, 20), (70, 40, 20, 20), LEFT, {"3": thing("dog bowl", 40, 0, 20, 20)}, False),
    ],
)
def test_the_improved_filter_wants_clear_pairs(tmp_path, first, second, relation, more, kept):
    objects = {"1": thing("dog", *first, {"2": relation}), "2": thing("cat", *second), **more}
    write_gqa(tmp_path, {"1": graph(objects)})
    found = gqa_triplets(tmp_path, GQAFilter(unique=True, boxes=BoxFilter()))
    assert told(found) == ([("dog", relation, "cat")] if kept else [])


def test_boxes_count_within_the_centred_square(tmp_path):
    objects = {"1": thing("dog", 0, 40, 40, 20, {"2": LEFT}), "2": thing("cat", 150, 40, 20, 20)}
    write_gqa(tmp_path, {"1": graph(objects, width=200)})  # the square spans x from 50 to 150
    assert told(gqa_triplets(tmp_path, GQAFilter(boxes=BoxFilter()))) == []
    assert len(gqa_triplets(tmp_path, GQAFilter())) == 1


def test_missing_data_is_an_error_that_says_what_to_fetch(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sceneGraphs\.zip"):
        gqa_triplets(tmp_path, GQAFilter())
    write_gqa(tmp_path, {"1": graph({})}, missing={"1"})
    with pytest.raises(FileNotFoundError, match=r"images\.zip"):
        gqa_triplets(tmp_path, GQAFilter())
    with pytest.raises(FileNotFoundError, match="ZiyuG/Image-Generation-CoT"):
        orm_triplets(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"index\.noun is missing"):
        WordNet(tmp_path)


def test_orm_pictures_judged_right_give_triplets(tmp_path):
    rows = [
        ("a photo of a bench left of a bear", "yes"),
        ("a photo of an orange above a tennis racket", "Yes"),
        ("a photo of a bench right of a bear", "no"),
        ("a photo of a white hot dog", "yes"),
        ("a photo of a purple dog", "yes"),
        ("a photo of a white dog and a green cat", "yes"),
        ("a photo of two dogs", "yes"),
    ]
    write_orm(tmp_path, rows)
    assert told(orm_triplets(tmp_path)) == [
        ("bench", LEFT, "bear"), ("orange", "above", "tennis racket"), ("white", "is", "hot dog"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("dogs", "dog"), ("Buses", "bus"), ("bus", "bus"), ("glass", "glass"), ("dishes", "dish"), ("boxes", "box"),
        ("tennis rackets", "tennis racket"), ("tennis", "tennis"), ("people", "person"), ("ladies", "lady"),
        ("scissors", "scissors"), ("potatoes", "potato"), ("houses", "house"), ("shoes", "shoe"), ("men", "man"),
        ("grass", "grass"), ("knives", "knife"), ("gas", "gas"), ("horses", "horse"), ("benches", "bench"),
    ],
)  # fmt: skip
def test_names_become_singular(plural, one):
    assert singular(plural) == one


def test_prompts_state_the_truth_and_one_other_relation():
    relation = Triplet("1.jpg", "1", "dog", LEFT, "apple")
    attribute = Triplet("1.jpg", "1", "white", "is", "dog")
    assert stated(relation, LEFT) == "A dog to the left of an apple"
    assert stated(relation, LEFT, articles=False) == "A dog to the left of a apple"
    assert stated(relation, "is") == "A dog is an apple"
    assert stated(attribute, "is") == "A white dog" and stated(attribute, "above") == "A white above a dog"
    names = ("above", "is", LEFT)
    drawn = set()
    for seed in range(30):
        right, wrong = dual_prompts(relation, names, articles=True, seed=seed)
        assert right.word == LEFT and right.source == wrong.source == "1" and wrong.word in ("above", "is")
        assert [span.text for span in wrong.spans] == ["dog", "apple"]
        drawn.add(wrong.word)
    assert drawn == {"above", "is"}
    assert dual_prompts(relation, names, articles=True, seed=4) == dual_prompts(relation, names, articles=True, seed=4)


def pictures_of(count):
    """Each picture: first "above", then "below"."""
    return [[Triplet("x", str(i), f"a{i}", word, "b") for word in ("above", "below")] for i in range(count)]


def test_published_splits_are_by_triplet_the_first_of_each_picture_first():
    sizes = SplitSizes((6, 3, 1), (1, 1, 1))
    parts = [published_split(pictures_of(10), sizes, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [12, 6, 2]
    taken = [triplet for part in parts for triplet in part]
    assert len(set(taken)) == 20
    with pytest.raises(ValueError, match="only 10 triplets with 'above' .* 11 are wanted"):
        published_split(pictures_of(10), SplitSizes((7, 3, 1), (1, 1, 1)), "train")
    firsts = [triplets[:1] for triplets in pictures_of(4)]
    firsts[0].append(Triplet("x", "0", "late", "above", "b"))
    last = published_split(firsts, SplitSizes((4, 1, 0), (1, 1, 1)), "val")
    assert [triplet.subject for triplet in last] == ["late"]


def test_improved_splits_never_share_a_picture():
    sizes = SplitSizes((20, 6, 4), (1, 1, 1))
    parts = [split_by_picture(pictures_of(120), sizes, split, seed=1) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [40, 12, 8]
    sources = [{triplet.source for triplet in part} for part in parts]
    assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
    assert parts[0] == split_by_picture(pictures_of(120), sizes, "train", seed=1)
    assert parts[0] != split_by_picture(pictures_of(120), sizes, "train", seed=2)


def test_samples_are_asked_for_with_words_and_seeds_of_their_own():
    items = sample_items(40, ["dog", "apple", "teddy bear"], (LEFT, "above", "none"), seed=3)
    assert len({item["id"] for item in items}) == 40 and [item["seed"] for item in items] == list(range(3, 43))
    assert {item["word"] for item in items} == {LEFT, "above", None}
    for item in items:
        assert [span.text for span in sample_prompt(item).spans] == [item["subject"], item["object"]]
        assert (" and " in item["prompt"]) == (item["word"] is None)
    with pytest.raises(ValueError, match="two nouns"):
        sample_items(1, ["dog"], (LEFT,), 0)


class Boxes:
    """A detector that finds the same boxes in every picture."""

    name = "boxes"

    def __init__(self, *boxes):
        self.boxes = list(boxes)

    def __call__(self, pictures, labels):
        assert all(picture.size == (8, 6) for picture in pictures)
        return [self.boxes for _ in pictures]


@pytest.mark.parametrize(
    ("cat", "relations", "label"),
    [
        (Box("cat", 0.9, 70, 40, 90, 60), (LEFT, RIGHT), LEFT),
        (Box("cat", 0.9, 40, 70, 60, 99), (LEFT, RIGHT), None),
        (Box("cat", 0.9, 40, 70, 60, 99), (LEFT, "above"), "above"),
        (Box("cat", 0.9, 70, 70, 90, 99), (LEFT, "above"), None),
        (Box("cat", 0.9, 70, 70, 90, 99), (LEFT, "above and to the left of"), "above and to the left of"),
        (Box("cow", 0.9, 70, 40, 90, 60), (LEFT, RIGHT), None),
        (Box("cow", 0.9, 70, 40, 90, 60), (LEFT, "none"), "none"),
    ],
)
def test_a_detector_labels_what_the_picture_shows(cat, relations, label):
    import torch

    x = 40 if cat.left == 40 else 10
    y = 40 if cat.top == 40 else 10
    dog = Box("dog", 0.9, x, y, x + 20, y + 20)
    seen = DetectorLabels(Boxes(dog, cat, Box("dog", 0.1, 0, 0, 1, 1)), [("dog", "cat")] * 2, relations)
    assert seen(torch.rand(2, 3, 6, 8)) == [label, label]


def test_fixture_files_are_as_the_data_sets_have_them(tmp_path):
    """The keys of GQA's download page, of LLaVA-style conversations."""
    write_gqa(tmp_path, {"1": graph({"5": thing("dog", 1, 2, 3, 4, {"6": "above"}, ["white"])})})
    loaded = json.loads((tmp_path / "train_sceneGraphs.json").read_text())["1"]
    assert set(loaded) == {"width", "height", "objects"}
    assert loaded["objects"]["5"] == {
        "name": "dog", "x": 1, "y": 2, "w": 3, "h": 4, "attributes": ["white"],
        "relations": [{"name": "above", "object": "6"}],
    }  # fmt: skip
