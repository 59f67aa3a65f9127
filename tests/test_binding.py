"""The binding objective in the shapes world: exact labels, and the whole command on a tiny random model."""

from random import Random

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.world import binding
from attnsteer.world.binding import binding_seen, exchanged, pair_prompt, prompt_of, two_kinds, words_of
from attnsteer.world.detect import Detection
from attnsteer.world.scene import Shape
from tiny import build

RED_CIRCLE, BLUE_SQUARE = Shape("circle", "red", 0.3, 0.3, 0.14), Shape("square", "blue", 0.7, 0.7, 0.14)


def seen(*shapes, score=0.9):
    return [Detection(shape, score, (0, 0, 1, 1)) for shape in shapes]


def test_words_and_their_exchange():
    words = words_of((RED_CIRCLE, BLUE_SQUARE))
    assert prompt_of(words) == "a red circle and a blue square"
    assert prompt_of(exchanged(words)) == "a blue circle and a red square"


def test_pairs_say_what_the_prompt_says():
    random, words = Random(0), words_of((RED_CIRCLE, BLUE_SQUARE))
    drawn = {(p.subject, p.object, p.word) for p in (pair_prompt(words, random, "x") for _ in range(40))}
    assert drawn == {
        ("red", "circle", "is"), ("blue", "square", "is"), ("red", "square", "is not"), ("blue", "circle", "is not"),
    }  # fmt: skip


def test_labels_are_what_the_picture_shows():
    found = seen(RED_CIRCLE, BLUE_SQUARE)
    assert binding_seen("red", "circle", found) == "is" and binding_seen("red", "square", found) == "is not"
    assert binding_seen("green", "circle", found) is None and binding_seen("red", "triangle", found) is None
    assert binding_seen("red", "circle", seen(RED_CIRCLE, BLUE_SQUARE, score=0.1)) is None


def test_things_differ_in_colour_and_shape():
    random = Random(3)
    for _ in range(30):
        first, second = two_kinds(random)
        assert first.shape != second.shape and first.colour != second.colour


def test_the_command_from_maps_to_figures(tmp_path, monkeypatch, capsys):
    pipe = build("sd")
    pipe.save_pretrained(tmp_path / "model")
    # A random model draws no shapes, so its own samples have no labels: rendered pictures stand in for them.
    drawn = binding.rendered_batch
    monkeypatch.setattr(
        binding, "sampled_batch", lambda pipe, recording, seed, n: drawn(pipe, recording, seed, n.batch)
    )
    monkeypatch.setattr(binding, "MAP_SIZE", 4)
    monkeypatch.setattr(binding, "STEPS", 6)
    monkeypatch.setattr(binding, "STEERED", (1, 2))
    few = ["--rendered-shards", "1", "--sampled-shards", "1", "--held-out-shards", "1", "--batch", "6"]
    call = [
        "--model",
        str(tmp_path / "model"),
        "--work",
        str(tmp_path / "work"),
        "--epochs",
        "1",
        "--count",
        "2",
        *few,
    ]
    binding.main(call)
    printed = capsys.readouterr().out
    assert "steered: both things right" in printed and '"accuracy"' in printed
    classifier = RelationClassifier.from_pretrained(tmp_path / "work" / "binding")
    assert classifier.relations == ("is", "is not") and classifier.settings.source.num_steps == 6
