"""Spatial relations in Korean, where the object comes first and the place is a noun with a particle.

    곰인형 오른쪽에 개            (teddy bear, at its right, a dog)       dog  to the right of  teddy bear
    개가 고양이의 왼쪽에 있다      (the dog is at the cat's left)          dog  to the left of   cat
    고양이 왼쪽에 있는 개 위에 새  (above the dog left of the cat, a bird) two relations

Particles are cut off by their form (이/가, 은/는, 을/를, ... must agree with the final sound of the noun); nouns that
merely end like that (고양이) are listed in `lexicons/ko.json`. Korean words for "on" and "above" are the same: 위.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from attnsteer.steering.parser.chunks import Chunk
from attnsteer.steering.parser.findings import Findings
from attnsteer.steering.parser.lexicon import PLACES, RELATIONS, Lexicon
from attnsteer.steering.parser.places import Placed, place_of_relation
from attnsteer.steering.parser.quotes import QUOTED, quoted_words
from attnsteer.steering.parser.spans import ParseReport, Span
from attnsteer.steering.parser.words import Word, split_words

_LONGEST_NOUN = 5  # words of one noun phrase
_KINDS = {"adnominal": "adnominal", "negation": "negations", "verb": "verbs", "count": "counts"}
_REACH = 12  # words searched for a marked subject


@dataclass(frozen=True, slots=True)
class _Part:
    """One word of a clause, taken apart.

    Args:
        kind: "noun", "place" (a relation noun), "between" (one that places nothing; `words` tell why), "verb",
            "adnominal" (있는), "negation", "count", "medium".
        start: Offset of its first letter.
        end: Offset after its last letter, without the particle.
        mark: "subject", "place", "other" for the particle that follows, or "".
        words: The words it was read from, without particle.
    """

    kind: str
    start: int
    end: int
    mark: str
    words: str


def read_korean(text: str, lexicon: Lexicon) -> ParseReport:
    """Relations of the Korean clauses of `text`, and those that were left alone. Linear in its length."""
    reader = _Reader(text, lexicon)
    for clause in reader.clauses():
        reader.read(clause)
    return reader.found.report()


class _Reader:
    def __init__(self, text: str, lexicon: Lexicon) -> None:
        self.text, self.lexicon = text, lexicon
        self.found = Findings(text)
        self.quoted: set[int] = set()  # offsets of words in quotes

    def clauses(self) -> Iterator[list[_Part]]:
        """Parts between pauses and clause-ending verbs."""
        words, at, clause = split_words(self.text), 0, list[_Part]()
        self.quoted = {w.start for w, yes in zip(words, quoted_words(self.text, words), strict=True) if yes}
        while at < len(words):
            if words[at].kind != "word":
                yield clause
                clause, at = [], at + 1
                continue
            part, at = self.part(words, at)
            clause.append(part)
            if part.words in self.lexicon.words("clause_ends"):
                yield clause
                clause = []
        yield clause

    # Words

    def part(self, words: list[Word], at: int) -> tuple[_Part, int]:
        """The part that begins at word `at`, and the index behind it."""
        for size in (2, 1):
            group = words[at : at + size]
            if len(group) == size and all(word.kind == "word" for word in group):
                found = self.place(group)
                if found is not None:
                    return found, at + size
        word, classes = words[at], self.lexicon.words
        for kind, name in _KINDS.items():
            if word.key in classes(name):
                return _Part(kind, word.start, word.end, "", word.key), at + 1
        if re.search(r"(다|니다|어요|아요|세요|줘)$", word.key) and len(word.key) > 2:
            return _Part("verb", word.start, word.end, "", word.key), at + 1
        stem, mark = self.cut_particle(word.key)
        kind = "medium" if stem in classes("media") else "noun"
        return _Part(kind, word.start, word.end - len(word.key) + len(stem), mark, stem), at + 1

    def place(self, group: list[Word]) -> _Part | None:
        """A relation noun of one or two words, with or without its particle."""
        first, last = group[0], group[-1]
        for particle in ("", *sorted(self.lexicon.words("relation_particles"), key=len, reverse=True)):
            if not last.key.endswith(particle) or len(last.key) == len(particle):
                continue
            stem = last.key[: len(last.key) - len(particle)]
            keys = [*(word.key for word in group[:-1]), stem]
            found = self.lexicon.longest_match(keys, 0)
            if found and found[0] == len(keys):
                if first.start in self.quoted:
                    return _Part("between", first.start, last.end - len(particle), "", QUOTED)
                kind = "place" if found[1].kind in ("relations", "places") else "between"
                mark = "place" if particle not in ("", "의") else ""
                return _Part(kind, first.start, last.end - len(particle), mark, found[1].value)
        return None

    def cut_particle(self, word: str) -> tuple[str, str]:
        """Noun and the mark of its particle: 개가 -> (개, subject), 고양이 -> (고양이, "")."""
        classes = self.lexicon.words
        if word in classes("whole_words"):
            return word, ""
        for mark, name in (("subject", "subject_particles"), ("other", "other_particles")):
            for sound in ("consonant", "vowel", "any"):
                for particle in sorted(classes(f"{name}.{sound}"), key=len, reverse=True):
                    stem = word[: len(word) - len(particle)]
                    if word.endswith(particle) and stem and (sound == "any" or _final_sound(stem) in (sound, "any")):
                        return stem, mark
        return word, ""

    # Clauses

    def read(self, parts: list[_Part]) -> None:
        """Read the relations of one clause."""
        for at, part in enumerate(parts):
            if part.kind == "between":
                self.found.skip(part, part, part.words)
            elif part.kind == "place":
                self.relate(parts, at)

    def relate(self, parts: list[_Part], at: int) -> None:
        place = parts[at]
        target = self.noun_before(parts, at)
        behind, adnominal = self.noun_behind(parts, at)
        marked = self.marked_subject(parts, at - len(target))
        if any(part.kind == "negation" for part in parts[at + 1 : at + 4]):
            self.found.skip(place, place, "it is negated; name it in a negative prompt instead")
        elif target and place.words not in RELATIONS:
            self.found.skip(place, place, "it is a part of a thing, not a place beside it")
        elif target and target[-1].words in self.lexicon.words("pronouns"):
            self.found.skip(place, place, "a pronoun stands before it; name the thing instead")
        elif not target:
            self.place_in_picture(place, marked if behind is None else behind)
        elif not place.mark and behind is None and marked is None:
            return  # a plain noun such as 위 at the end of a phrase
        elif behind is not None and marked is not None and not adnominal:
            self.found.skip(place, place, "it could be about more than one of the things before it")
        else:
            subject = behind if behind is not None else marked
            if subject is None:
                self.found.skip(place, place, "nothing that it could be about stands beside it")
            else:
                self.found.relate([subject], place.words, [self.found.span(target[0], target[-1])], place)

    def noun_before(self, parts: list[_Part], at: int) -> list[_Part]:
        """Words of the noun phrase that ends directly before `at`; only its last word may carry 의."""
        first = at
        while first > 0 and at - first < _LONGEST_NOUN and parts[first - 1].kind == "noun":
            part = parts[first - 1]
            if part.mark == "subject" or (part.mark and (first < at or self.text[part.end : part.end + 1] != "의")):
                break
            first -= 1
        return parts[first:at]

    def noun_behind(self, parts: list[_Part], at: int) -> tuple[Span | None, bool]:
        """Noun phrase behind the place, past verbs like 있는; and whether such a verb stood between."""
        first, adnominal = at + 1, False
        while first < len(parts) and parts[first].kind in ("adnominal", "verb", "count"):
            adnominal = adnominal or parts[first].kind == "adnominal"
            first += 1
        stop = first
        while stop < len(parts) and parts[stop].kind == "noun" and stop - first < _LONGEST_NOUN:
            stop += 1
            if parts[stop - 1].mark:
                break
        return (self.found.span(parts[first], parts[stop - 1]) if stop > first else None), adnominal

    def marked_subject(self, parts: list[_Part], stop: int) -> Span | None:
        """Noun phrase with a subject particle before index `stop`."""
        for index in range(stop - 1, max(-1, stop - _REACH), -1):
            if parts[index].kind == "noun" and parts[index].mark == "subject":
                first = index
                while first > max(0, index - _LONGEST_NOUN) and (parts[first - 1].kind, parts[first - 1].mark) == (
                    "noun",
                    "",
                ):
                    first -= 1
                return self.found.span(parts[first], parts[index])
            if parts[index].kind == "place":
                return None
        return None

    def place_in_picture(self, place: _Part, noun: Span | None) -> None:
        if noun is None or not place.mark:
            return
        name = place.words if place.words in PLACES else place_of_relation(place.words)
        if name is None:
            self.found.skip(place, place, "no object stands before it")
            return
        chunk = Chunk("place", place.start, place.end, name)
        self.found.placed.append(Placed(Chunk("noun", noun.start, noun.end, ""), chunk))


def _final_sound(stem: str) -> str:
    """Last sound, "consonant" or "vowel"; Unicode lays syllables out in blocks of 28 finals, the first without one."""
    code = ord(stem[-1]) - 0xAC00
    if not 0 <= code < 11172:
        return "any"
    return "consonant" if code % 28 else "vowel"
