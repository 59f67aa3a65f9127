"""The prompt parser: templates of the benchmarks, hard English and Korean, markup, and properties on any text."""

import gc
import json
import random
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from attnsteer.cli import main
from attnsteer.steering.relations import (
    RELATIONS,
    Relation,
    Span,
    canonical_relation,
    explain_relations,
    load_lexicon,
    parse_relations,
    strip_markup,
)

DATA = Path(__file__).parent / "data"
NOUNS = json.loads((DATA / "nouns.json").read_text())
PHRASES = {
    "left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below",
    "to the left of": "to the left of", "to the right of": "to the right of", "on the left of": "to the left of",
    "on the right of": "to the right of", "on the top of": "above", "on the bottom of": "below", "near": "near",
    "next to": "near", "on side of": "near", "in front of": "in front of", "behind": "behind",
}  # fmt: skip


def triples(prompt, **options):
    return [(r.subject.text, r.relation, r.object.text) for r in parse_relations(prompt, **options)]


def a(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def name(noun):
    return noun.removeprefix("bunch of ")  # a quantity is not part of the thing


# Templates of the benchmarks, over the COCO names and nouns of our own


def test_visor_templates():
    for subject, other in list(permutations(NOUNS["coco"], 2))[::7]:
        for relation in ("to the left of", "to the right of", "above", "below"):
            assert triples(f"{a(subject)} {relation} {a(other)}") == [(subject, relation, other)]


def test_geneval_templates():
    for subject, other in list(permutations(NOUNS["coco"], 2))[::11]:
        for phrase in ("left of", "right of", "above", "below"):
            assert triples(f"a photo of {a(subject)} {phrase} {a(other)}") == [(subject, PHRASES[phrase], other)]


def test_t2i_compbench_templates():
    for subject, other in list(permutations(NOUNS["own"], 2))[::3]:
        for phrase, relation in PHRASES.items():
            assert triples(f"{a(subject)} {phrase} {a(other)}") == [(name(subject), relation, name(other))]


def test_chains():
    rng = random.Random(0)
    for _ in range(1000):
        one, two, three, four = rng.sample(NOUNS["own"] + NOUNS["coco"], 4)
        first, second, third = rng.choices(list(PHRASES), k=3)
        expected = [
            (name(one), PHRASES[first], name(two)),
            (name(two), PHRASES[second], name(three)),
            (name(four), PHRASES[third], name(one)),
        ]
        chain = f"a photo of {a(one)} {first} {a(two)} {second} {a(three)}"
        assert triples(chain) == expected[:2]
        assert triples(f"{chain} and {a(four)} {third} {a(one)}") == expected


def test_shapes_world():
    rng = random.Random(1)

    def shape():
        words = rng.choice([*NOUNS["attributes"], ""]), rng.choice(NOUNS["colors"]), rng.choice(NOUNS["shapes"])
        return " ".join(word for word in words if word)

    for _ in range(500):
        one, two, three = shape(), shape(), shape()
        first, second = rng.choices(list(PHRASES), k=2)
        assert triples(f"a {one}") == []
        assert triples(f"a {one} {first} a {two}") == [(one, PHRASES[first], two)]
        expected = [(one, PHRASES[first], two), (two, PHRASES[second], three)]
        assert triples(f"a {one} {first} a {two} {second} a {three}") == expected


# Hard English and Korean: each case was judged by hand


def hard_prompts():
    cases = {}
    for line in (DATA / "hard_prompts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("    !"):
            cases[prompt][1].append(line.removeprefix("    !").strip())
        elif line.startswith("    "):
            cases[prompt][0].append(tuple(part.strip() for part in line.split("|")))
        elif line and not line.startswith("#"):
            prompt = line
            cases[prompt] = ([], [])
    return [pytest.param(prompt, *expected, id=prompt) for prompt, expected in cases.items()]


@pytest.mark.parametrize(("prompt", "relations", "reasons"), hard_prompts())
def test_hard_prompts(prompt, relations, reasons):
    report = explain_relations(prompt)
    assert [(r.subject.text, r.relation, r.object.text) for r in report.relations] == relations
    assert [skipped.reason for skipped in report.skipped] == reasons


def test_spans_point_at_the_right_mention():
    prompt = "A dog is left of a cat. The cat is above a bird."
    first, second = parse_relations(prompt)
    assert (first.object.start, second.subject.start) == (prompt.index("cat"), prompt.rindex("cat"))
    bears = parse_relations("a teddy bear left of a bear")[0]
    assert bears.subject.start == 2 and bears.object.start == 23


def test_line_ends_join_and_blank_lines_part():
    assert triples("a cat\nto the left of a dog") == [("cat", "to the left of", "dog")]
    assert triples("a cat\n\nto the left of a dog") == []


# Spans


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("red circle", "circle"), ("dog", "dog"), ("big red hot dog", "hot dog"), ("Teddy Bear", "Teddy Bear"),
        ("glass of water", "glass"), ("small glass of cold water", "glass"), ("t-shirt", "t-shirt"), ("빨간 개", "개"),
    ],
)  # fmt: skip
def test_head(text, head):
    prompt = f"a {text} above a bed"
    found = Span(text, 2, 2 + len(text)).head
    assert found.text == head and prompt[found.start : found.end] == head


def test_span_refuses_wrong_offsets():
    with pytest.raises(ValueError, match="cannot reach"):
        Span("dog", 0, 5)
    with pytest.raises(ValueError, match="cannot reach"):
        Span("dog", -1, 2)


# Explicit relations


def test_relation_of_finds_phrases():
    prompt = "A teddy bear, a Bear and a table"
    relation = Relation.of(prompt, "bear", "right of", "teddy bear")
    assert relation == Relation(Span("Bear", 16, 20), "to the right of", Span("teddy bear", 2, 12))
    twins = Relation.of("a dog and a dog", "dog", "above", "dog")
    assert (twins.subject.start, twins.object.start) == (2, 12)
    chosen = Relation.of("a dog and a dog", Span("dog", 12, 15), "above", "dog")
    assert (chosen.subject.start, chosen.object.start) == (12, 2)


def test_relation_of_errors_teach():
    with pytest.raises(ValueError, match='"doog" is not in the prompt.*did you mean "dog"'):
        Relation.of("a dog and a cat", "doog", "above", "cat")
    with pytest.raises(ValueError, match="a second time"):
        Relation.of("a dog and a cat", "dog", "above", "dog")
    with pytest.raises(ValueError, match="not a known relation; use one of to the left of"):
        Relation.of("a dog and a cat", "dog", "eating", "cat")
    with pytest.raises(ValueError, match="not part of the prompt"):
        Relation.of("a dog and a cat", Span("pig", 2, 5), "above", "cat")
    with pytest.raises(ValueError, match="empty"):
        Relation.of("a dog and a cat", " ", "above", "cat")


@pytest.mark.parametrize(
    ("phrase", "relation"),
    [
        ("right of", "to the right of"), ("Left", "to the left of"), ("on top of", "above"), ("beside", "near"),
        ("above_left", "above and to the left of"), ("bottom-right of", "below and to the right of"),
    ],
)  # fmt: skip
def test_canonical_relation(phrase, relation):
    assert canonical_relation(phrase) == relation


def test_canonical_names_are_fixed_points():
    assert len(RELATIONS) == 11
    for relation in RELATIONS:
        assert canonical_relation(relation) == relation
        assert triples(f"a dog {relation} a cat") == [("dog", relation, "cat")]


# Markup


def test_markup_gives_the_plain_prompt_with_offsets():
    plain = strip_markup("a [red dog]{right of}[the teddy bear], oil painting")
    assert plain.text == "a red dog right of the teddy bear, oil painting"
    (relation,) = plain.relations
    assert (relation.subject.text, relation.relation, relation.object.text) == (
        "red dog", "to the right of", "teddy bear",
    )  # fmt: skip
    for span in (relation.subject, relation.object):
        assert plain.text[span.start : span.end] == span.text


def test_markup_with_text_between_and_chains():
    plain = strip_markup("a [dog] sitting {left of} a [cat], {above} the [table]")
    assert plain.text == "a dog sitting left of a cat, above the table"
    found = [(r.subject.text, r.relation, r.object.text) for r in plain.relations]
    assert found == [("dog", "to the left of", "cat"), ("cat", "above", "table")]


def test_markup_overrides_and_keeps_offsets_of_the_marked_prompt():
    prompt = "a cow left of a pig, [dog]{above}[cat]"
    (relation,) = parse_relations(prompt)
    assert relation == Relation(Span("dog", 22, 25), "above", Span("cat", 34, 37))


@pytest.mark.parametrize("prompt", ["a [dog] left of [cat]", "a {red|blue} dog", "[a]{above}", "plain", ""])
def test_other_brackets_are_text(prompt):
    assert strip_markup(prompt) == (prompt, ())


def test_unknown_markup():
    prompt = "[dog]{eats}[cat]"
    with pytest.raises(ValueError, match="'eats' is not a known relation"):
        strip_markup(prompt)
    report = explain_relations(prompt)
    assert report.relations == () and "'eats' is not a known relation" in report.skipped[0].reason


# Other lexicons


def test_user_phrases_are_added_to_english():
    lexicon = {"northwest of": "above and to the left of", "(links|linkerhand) von": "to the left of"}
    assert triples("a dog northwest of a cat", lexicon=lexicon) == [("dog", "above and to the left of", "cat")]
    assert triples("a Hund linkerhand von a Katze", lexicon=lexicon) == [("Hund", "to the left of", "Katze")]
    assert triples("a dog above a cat", lexicon=lexicon) == [("dog", "above", "cat")]
    assert triples("a dog northwest of a cat") == []


def test_user_phrase_outranks_an_idiom():
    assert triples("a boat by the sea", lexicon={"by": "near"}) == [("boat", "near", "sea")]


def test_whole_lexicon_of_another_language(tmp_path):
    path = tmp_path / "de.json"
    german = {
        "language": "German",
        "relations": {"to the left of": ["links von"], "above": ["über"], "below": ["unter"]},
        "determiners": ["ein", "eine", "einem", "einer", "der", "die", "das", "dem"],
        "conjunctions": ["und"],
        "copulas": {"singular": ["ist", "steht"]},
    }
    path.write_text(json.dumps(german), encoding="utf-8")
    lexicon = load_lexicon(str(path))
    found = triples("ein roter Ball links von einem Hund und über der Bank", lexicon=lexicon)
    assert found == [("roter Ball", "to the left of", "Hund"), ("roter Ball", "above", "Bank")]
    line = ["parse", "ein Ball unter der Bank", "--json", "--lexicon"]
    done = CliRunner().invoke(main, [*line, str(path)])
    assert [r["relation"] for r in json.loads(done.stdout)["relations"]] == ["below"]
    refused = CliRunner().invoke(main, [*line, "nowhere.json"])
    assert refused.exit_code == 2 and "no lexicon 'nowhere.json'" in refused.stderr


def test_lexicon_errors(tmp_path):
    with pytest.raises(ValueError, match="'sideways' is not a relation"):
        parse_relations("a dog", lexicon={"by": "sideways"})
    with pytest.raises(ValueError, match="no word in it"):
        parse_relations("a dog", lexicon={"!": "near"})
    with pytest.raises(ValueError, match="round brackets"):
        parse_relations("a dog", lexicon={"on|at": "near"})
    with pytest.raises(ValueError, match="no lexicon 'fr': give one of en, ko"):
        load_lexicon("fr")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_lexicon(str(broken))


def test_korean_lexicon_by_name_and_in_markup():
    assert triples("곰인형 오른쪽에 개", lexicon=load_lexicon("ko")) == [("개", "to the right of", "곰인형")]
    assert triples("[개]{오른쪽}[곰인형]") == [("개", "to the right of", "곰인형")]
    assert strip_markup("[개]{위}[집]").text == "개 위 집"


# Properties

ENGLISH = (
    "a the red dog cat it its them to on in left right of above below over under near next and , . ; ( ) [ ] { } : "
    "1.3 is are not that which between there with sitting stands side top each other 's both of one"
)
KOREAN = "개가 왼쪽에 있는 고양이 위에 사이에"
SIGNS = ["-", "—", "BREAK", "<", ">", "|", "+", "\n", "\n\n", "'foo", "'", "‘", "’", '"', "«"]
FOREIGN = [
    "İ", "e\u0301", "🐶", "", "👩‍👩‍👧", "🏳️‍🌈", "كلب فوق قطة", "חתול", "\u202eabove\u202c", "\u200d", "\ufeff",
    "ﬁsh", "Ａbove", "\ud83d",
]  # fmt: skip
WORDS = st.sampled_from([*ENGLISH.split(), *KOREAN.split(), *SIGNS, *FOREIGN])


def check(prompt):
    report = explain_relations(prompt)
    spans = [span for r in report.relations for span in (r.subject, r.object)] + [s.span for s in report.skipped]
    for span in spans:
        assert prompt[span.start : span.end] == span.text != ""
        head = span.head
        assert span.start <= head.start < head.end <= span.end and prompt[head.start : head.end] == head.text
    for relation in report.relations:
        assert relation.relation in RELATIONS
        assert relation.subject.end <= relation.object.start or relation.object.end <= relation.subject.start
    assert all(skipped.reason for skipped in report.skipped)
    assert report == explain_relations(prompt)


@given(st.text(st.characters()))
@settings(deadline=None, max_examples=300)
def test_any_text_gives_consistent_spans(prompt):
    check(prompt)


@given(st.lists(WORDS, max_size=30), st.sampled_from([" ", "", "  "]))
@settings(deadline=None, max_examples=600)
def test_any_words_give_consistent_spans(words, glue):
    check(glue.join(words))


@given(st.lists(WORDS, max_size=20))
@settings(deadline=None, max_examples=200)
def test_markup_never_loses_text(words):
    prompt = " ".join(words) + " [x y]{above}[z]"
    plain = strip_markup(prompt)
    marks = str.maketrans("", "", "[]{} ")
    assert plain.text.translate(marks) == prompt.translate(marks)
    for relation in plain.relations:
        for span in (relation.subject, relation.object):
            assert plain.text[span.start : span.end] == span.text


@pytest.mark.parametrize(
    "piece",
    [
        "a dog to the left of a cat ", "above ", "it ", "running ", "(", "[", "[a]{above}[b] ", '"', "“", ":1",
        "a cat, ", "and ", "on the left ", "of ", "a dog and a cat are left of them. ", "between a and b ",
        "above it ", "to its left ", "'s left ", "개 ", "왼쪽에 ", "왼쪽에 있는 ", "\n", "\n ", "-", "+", "a", "1.",
        "left of and ", "'a ", " 'a above", "‘a ", "’s ", "'", "„", "«a above ", "👩‍👩‍👧 above ", "\u200d", "فوق ",
    ],
)  # fmt: skip
def test_time_grows_linearly(piece):
    def seconds(size):
        text = (piece * (size // len(piece) + 1))[:size]
        start = time.process_time()
        explain_relations(text)
        return time.process_time() - start

    gc.freeze()  # what other tests left in memory is not searched for garbage meanwhile
    try:
        seconds(1000)
        # Ten times the text: quadratic work would take a hundred times as long.
        assert seconds(100_000) < 30 * seconds(10_000) + 1
    finally:
        gc.unfreeze()


def test_modules_load_without_torch():
    code = "import sys, attnsteer.steering.relations; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
