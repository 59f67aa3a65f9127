"""Words of a prompt grouped into noun phrases, relation phrases and the small words that steer their reading."""

from dataclasses import dataclass, replace
from typing import Literal

from attnsteer.steering.parser.labels import bare_sides, label_at
from attnsteer.steering.parser.lexicon import Lexicon, Meaning, canonical_relation
from attnsteer.steering.parser.quotes import QUOTED, quoted_words
from attnsteer.steering.parser.verbs import Verbs
from attnsteer.steering.parser.words import split_words

Kind = Literal[
    "noun", "pronoun", "relation", "own side", "place", "reciprocal", "unsupported", "idiom", "conjunction", "comma",
    "stop", "copula", "verb", "participle", "relative", "negation", "existential", "preposition",
]  # fmt: skip
_PHRASES: dict[str, Kind] = {
    "relations": "relation", "pronoun_relations": "own side", "places": "place", "reciprocals": "reciprocal",
    "unsupported": "unsupported", "idioms": "idiom",
}  # fmt: skip
_CLASSES: dict[str, str] = {
    "negations": "negation", "conjunctions": "conjunction", "existential": "existential", "possessives": "possessive",
    "pronouns.thing": "pronoun", "pronouns.person": "pronoun", "pronouns.plural": "pronoun",
    "determiners": "determiner", "pronouns.unknown": "pronoun", "relative": "relative",
    "copulas.singular": "copula", "copulas.plural": "copula", "copulas.other": "copula",
    "prepositions": "preposition", "adverbs": "adverb",
}  # fmt: skip
_GENITIVE_REACH = 6  # words between "to" and "'s left"
_LONGEST_NOUN = 12  # words of one noun phrase; keeps the work per word bounded


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the prompt with one function.

    Args:
        kind: Its function.
        start: Character offset of its first letter; for nouns the article is left out.
        end: Character offset after its last letter.
        value: Canonical relation, place or reason; for pronouns, copulas and conjunctions their sort; for nouns the
            determiner ("" without one); else the word.
        key: Last word in lower case (of nouns: of the head).
    """

    kind: Kind
    start: int
    end: int
    value: str
    key: str = ""


def chunk(text: str, lexicon: Lexicon) -> list[Chunk]:
    """Chunks of `text` in order. Linear in its length (phrases and look-ahead are bounded)."""
    return _Chunker(text, lexicon).run()


class _Chunker:
    """One pass over the words; `at` is the index of the next one."""

    def __init__(self, text: str, lexicon: Lexicon) -> None:
        self.text = text
        self.words = split_words(text)
        self.keys = [word.key for word in self.words]
        self.lexicon = lexicon
        self.verbs = Verbs(self.words, lexicon, self.word_class)
        self.quoted = quoted_words(text, self.words)
        self.bare = bare_sides(self.words, lexicon, lambda i: self.word_class(i) == "word" and not self.quoted[i])
        self.chunks: list[Chunk] = []
        self.at = 0
        self.determiner = ""
        self.fresh = True  # no noun since the last pause and no relation: "a photo of" may still be an introduction
        self.related = False  # the sentence has a relation already

    def run(self) -> list[Chunk]:
        while self.at < len(self.words):
            word = self.words[self.at]
            if word.kind != "word" and self.quoted[self.at]:
                self.at += 1
            elif word.kind != "word":
                self.emit(word.kind, self.at, self.at + 1, "")
            elif not (self.genitive() or self.phrase() or self.function_word()):
                self.noun_phrase()
        return self.chunks

    def emit(self, kind: Kind, first: int, stop: int, value: str) -> None:
        words = self.words
        self.chunks.append(Chunk(kind, words[first].start, words[stop - 1].end, value, self.keys[stop - 1]))
        self.at, self.determiner = stop, ""
        self.related = kind != "stop" and (self.related or kind in ("relation", "own side"))
        if kind in ("comma", "stop"):
            self.fresh = not self.related
        elif kind in ("noun", "relation"):
            self.fresh = False

    # Phrases of the lexicon

    def match(self, index: int) -> tuple[int, Meaning] | None:
        """The phrase or label at word `index`, unless it is part of a hyphenated word (over-ripe) or of a quote."""
        label = label_at(self.text, self.words, index, self.lexicon)
        if label is not None:
            return label[0], Meaning("places", label[1])
        if index in self.bare:
            return index + 1, Meaning("places", self.bare[index])
        found = self.lexicon.longest_match(self.keys, index)
        if found is None or self.words[index].hyphened:
            return None
        stop = found[0]
        if self.quoted[index] != self.quoted[stop - 1]:
            return None  # the word "above" to the left of ...
        return None if stop < len(self.words) and self.words[stop].hyphened else found

    def phrase(self) -> bool:
        found = self.match(self.at)
        if found is None:
            return False
        stop, (kind, value) = found
        if kind == "intros":
            self.at, self.determiner = stop, ""
        elif self.quoted[self.at]:
            self.emit("idiom", self.at, stop, QUOTED)
        elif kind == "relations" and stop == self.at + 1 and stop < len(self.keys) and self.keys[stop].isdigit():
            self.emit("idiom", self.at, stop, "it compares with a number")
        else:
            self.emit(_PHRASES[kind], self.at, stop, value)
        return True

    def genitive(self) -> bool:
        """Read "to the dog's left" as "to the left of the dog"."""
        if self.keys[self.at] not in ("to", "on", "at") or self.quoted[self.at]:
            return False
        for index in range(self.at + 1, min(self.at + _GENITIVE_REACH, len(self.words) - 1)):
            if self.words[index].kind != "word" or self.keys[index] in self.lexicon.words("conjunctions"):
                return False
            if self.keys[index].endswith("'s") and self.keys[index + 1] in ("left", "right"):
                return self.emit_genitive(index)
        return False

    def emit_genitive(self, owner: int) -> bool:
        first = self.at + 1
        while first < owner and self.word_class(first) in ("determiner", "possessive"):
            first += 1
        stop = owner + 2
        if stop < len(self.keys) and self.keys[stop] == "side":
            stop += 1
        relation = canonical_relation(self.keys[owner + 1])
        noun = Chunk("noun", self.words[first].start, self.words[owner].end - 2, "the", self.keys[owner][:-2])
        self.emit("relation", self.at, stop, relation)
        self.chunks.append(noun)
        return True

    # Single words

    def word_class(self, index: int) -> str:
        """Class of the word at `index`: a `Kind`, "determiner", "possessive", "adverb", or "word" for content."""
        word, words = self.words[index], self.lexicon.words
        glued = word.hyphened or (index + 1 < len(self.words) and self.words[index + 1].hyphened)
        if word.kind != "word":
            return word.kind
        if glued or self.quoted[index]:
            return "word"
        for name, kind in _CLASSES.items():
            if word.key in words(name):
                return kind
        return "negation" if word.key.endswith("n't") else "word"

    def follows_word(self, index: int) -> bool:
        """Whether a noun phrase can go on at `index`."""
        if index >= len(self.words) or self.match(index):
            return False
        return self.word_class(index) in ("word", "determiner", "adverb")

    def function_word(self) -> bool:
        index, kind = self.at, self.word_class(self.at)
        key = self.keys[index]
        if kind == "word":
            return False
        if kind == "adverb":
            if self.follows_word(index + 1) and (self.determiner or self.chunks_end_in("relation", "preposition")):
                return False
            self.at += 1
        elif kind in ("determiner", "possessive"):
            self.read_determiner(index, kind)
        elif kind == "pronoun":
            self.read_pronoun(index)
        elif kind == "copula":
            plural = key in self.lexicon.words("copulas.plural")
            self.emit("copula", index, index + 1, "plural" if plural else "singular")
        else:
            self.emit(kind, index, index + 1, key)  # type: ignore[arg-type]
        return True

    def read_determiner(self, index: int, kind: str) -> None:
        if self.determiner and self.keys[index] == "a" and not self.follows_word(index + 1):
            # A thing named by a letter: "a A to the left of a B".
            self.emit("noun", index, index + 1, self.determiner)
            return
        stands_alone = self.keys[index] in self.lexicon.words("pronouns.unknown")
        verb_next = stands_alone and index + 1 < len(self.words) and self.verbs.form(index + 1) == "finite"
        if self.follows_word(index + 1) and not verb_next:
            self.determiner = self.determiner if self.determiner == "both" else self.keys[index]
            self.at = index + 1
        elif stands_alone or kind == "possessive":
            self.read_pronoun(index)
        else:
            self.at = index + 1

    def read_pronoun(self, index: int) -> None:
        key, words = self.keys[index], self.lexicon.words
        if key in words("relative") and self.chunks_end_in("noun", "comma", "pronoun"):
            self.emit("relative", index, index + 1, key)
        elif key in words("relative") and self.follows_word(index + 1):
            self.determiner, self.at = key, index + 1
        else:
            sorts = (sort for sort in ("thing", "person", "plural") if key in words(f"pronouns.{sort}"))
            self.emit("pronoun", index, index + 1, next(sorts, "unknown"))

    def chunks_end_in(self, *kinds: str) -> bool:
        return bool(self.chunks) and self.chunks[-1].kind in kinds

    # Noun phrases

    def noun_phrase(self) -> None:
        first, determiner = self.at, self.determiner
        before = self.chunks[-1].kind if self.chunks else ""
        run = self.run_of_words(first)
        infinitive = before == "copula" and self.chunks[-1].key == "to"
        if not determiner and (infinitive or self.verbs.opens(first, run, before)):
            self.emit_verb(first, first + 1)
            return
        stop, verb_stop = self.verbs.cut(first, run, determiner, before)
        if not determiner and self.imperative(first, run):
            self.emit("verb", first, run, self.keys[first])
        elif not self.introduction(first, stop):
            self.emit_noun(first, stop, determiner)
        if verb_stop > stop:
            self.emit_verb(stop, verb_stop)
        self.at = max(self.at, verb_stop)

    def emit_verb(self, first: int, stop: int) -> None:
        self.emit("verb" if self.verbs.form(first) == "finite" else "participle", first, stop, self.keys[first])

    def run_of_words(self, first: int) -> int:
        """Index after the content words that begin at `first`, without trailing adverbs."""
        stop, limit = first + 1, min(len(self.words), first + _LONGEST_NOUN)
        while stop < limit and self.word_class(stop) in ("word", "adverb") and not self.match(stop):
            stop += 1
        while stop > first + 1 and self.verbs.is_adverb(stop - 1):
            stop -= 1
        if self.determiner and stop < len(self.words) and self.keys[stop] in self.lexicon.words("noun_ends"):
            stop += 1  # "a blue one"
        return stop

    def imperative(self, first: int, run: int) -> bool:
        """Whether the run is one bare word at the start, directly before an article or pronoun: "draw a cat"."""
        if run != first + 1 or run >= len(self.words) or not (self.fresh or self.chunks_end_in("pronoun")):
            return False
        return self.word_class(run) in ("determiner", "pronoun", "possessive") and not self.match(run)

    def introduction(self, first: int, stop: int) -> bool:
        """Drop "a photo of", "a room with", "a pair of": what follows is the thing itself."""
        if stop >= len(self.words):
            return False
        head, link, words = self.keys[stop - 1], self.keys[stop], self.lexicon.words
        shows = (head in words("media") or head in words("scenes")) and link in words("scene_links")
        opens = self.fresh and (shows or (link == "of" and head in words("media")))
        if not opens and not (link == "of" and head in words("quantities")):
            return False
        self.at, self.determiner = stop + 1, ""
        return True

    def emit_noun(self, first: int, stop: int, determiner: str) -> None:
        """Emit a noun phrase, "of" phrases joined to it ("glass of water"), cut where brackets stand inside."""
        end = stop
        while end + 1 < len(self.words) and self.keys[end] == "of":
            inner = end + 1
            while inner < len(self.words) and self.word_class(inner) in ("determiner", "possessive"):
                inner += 1
            if inner >= len(self.words) or self.word_class(inner) not in ("word", "adverb") or self.match(inner):
                break
            end, _ = self.verbs.cut(inner, self.run_of_words(inner), "", "noun")
        begin = max((index for index in range(first + 1, stop) if self.words[index].split), default=first)
        tail = next((index for index in range(stop, end) if self.words[index].split), end)
        self.emit("noun", begin, tail, determiner)
        self.chunks[-1] = replace(self.chunks[-1], key=self.keys[stop - 1])
        self.at = end
