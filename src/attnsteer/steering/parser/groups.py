"""Chunks gathered into groups and sentences: pauses, verbs, negations and the other small words of a clause."""

from collections.abc import Sequence

from attnsteer.steering.parser.chunks import Chunk
from attnsteer.steering.parser.findings import Findings
from attnsteer.steering.parser.lexicon import Lexicon
from attnsteer.steering.parser.places import NO_NOUN, Placed
from attnsteer.steering.parser.reference import Antecedents, Group, Sentence

PAUSES = ("comma", "stop")


class GroupReader:
    """Keeps the current group and sentence up to date; `clauses.ClauseReader` adds places and relations.

    Every `on_*` method reads the chunk at an index and returns the index of the next one to read.

    Args:
        text: The prompt that the chunks were cut from.
        chunks: Its chunks in order.
        lexicon: Word classes (frames, gaze verbs, persons, inverting verbs).
    """

    def __init__(self, text: str, chunks: Sequence[Chunk], lexicon: Lexicon) -> None:
        self.text, self.chunks, self.lexicon = text, chunks, lexicon
        self.found = Findings(text)
        self.waiting: Chunk | None = None  # a place phrase whose noun is still to come
        self.antecedents = Antecedents(lexicon)
        self.sentence, self.group = Sentence(), Group()

    # Boundaries

    def on_stop(self, at: int, chunk: Chunk) -> int:
        """End the sentence."""
        self.end_sentence()
        return at + 1

    def on_comma(self, at: int, chunk: Chunk) -> int:
        """End the group."""
        self.end_group("comma")
        return at + 1

    def on_conjunction(self, at: int, chunk: Chunk) -> int:
        """End the group; "left of a cat and a bird" leaves open whether the bird belongs to the relation."""
        following, after = self.peek(at + 1), self.peek(at + 2)
        if self.group.after_object and following and following.kind == "noun":
            if after is None or after.kind in PAUSES:
                self.found.skip(following, following, "it may belong to the relation before it or stand alone")
        self.end_group(chunk.key)
        return at + 1

    def end_group(self, after: str) -> None:
        """Remember what the group was about, and begin the next one."""
        self.sentence.close(self.group)
        self.group = Group(after=after)

    def end_sentence(self) -> None:
        """Begin a sentence; its pronouns may look back on the nouns of this one."""
        self.end_group("")
        if self.waiting is not None:
            self.found.skip(self.waiting, self.waiting, NO_NOUN)
            self.waiting = None
        self.antecedents.end_sentence(self.sentence)
        self.sentence = Sentence()

    # Small words

    def on_noun(self, at: int, chunk: Chunk) -> int:
        """Add a noun to the group, and to the place that waits for one."""
        group = self.group
        group.nouns.append(chunk)
        group.number, group.moving = "", False
        self.sentence.nouns.append(chunk)
        if self.waiting is not None and len(group.nouns) == 1:
            self.found.placed.append(Placed(chunk, self.waiting))
            self.waiting = None
        return at + 1

    def on_pronoun(self, at: int, chunk: Chunk) -> int:
        """Take the pronoun as subject of its group where it comes first."""
        if not self.group.nouns and self.group.pronoun is None:
            self.group.pronoun = chunk
        return at + 1

    def on_copula(self, at: int, chunk: Chunk) -> int:
        """Note the finite verb and its number."""
        self.group.number = chunk.value
        self.group.apart = self.group.apart or chunk.key == "to"
        return at + 1

    def on_verb(self, at: int, chunk: Chunk) -> int:
        """Note the finite verb; its direction of gaze or motion is not a place."""
        plural = chunk.key in self.lexicon.words("verbs")
        self.group.number = "plural" if plural else "singular"
        return self.on_participle(at, chunk)

    def on_participle(self, at: int, chunk: Chunk) -> int:
        """Note a direction of gaze or motion, "looking to the left", and an object that stands elsewhere."""
        self.group.moving = chunk.key in self.lexicon.words("gaze_forms")
        self.group.apart = self.group.apart or chunk.key in self.lexicon.words("apart_forms")
        return at + 1

    def on_relative(self, at: int, chunk: Chunk) -> int:
        """Note that the next verb belongs to the noun before it."""
        self.group.relative = True
        return at + 1

    def on_negation(self, at: int, chunk: Chunk) -> int:
        """Note a negation; it holds to the end of the group or to the next relation."""
        self.group.negated = True
        return at + 1

    def on_existential(self, at: int, chunk: Chunk) -> int:
        """Pass over "there" of "there is"."""
        return at + 1

    def on_preposition(self, at: int, chunk: Chunk) -> int:
        """Note "with": what follows may be placed against what stands before."""
        self.group.linked = self.group.linked or chunk.key == "with"
        return at + 1

    def on_idiom(self, at: int, chunk: Chunk) -> int:
        """Record a fixed phrase that only looks like a relation."""
        self.found.skip(chunk, chunk, chunk.value)
        return at + 1

    def on_unsupported(self, at: int, chunk: Chunk) -> int:
        """Record a phrase that places, but not against one object in one direction ("between")."""
        kinds = [following.kind for following in self.chunks[at + 1 : at + 4]]
        self.found.skip(chunk, chunk, chunk.value)
        if kinds != ["noun", "conjunction", "noun"]:
            return at + 1
        self.group.unclear = True
        for noun in (self.chunks[at + 1], self.chunks[at + 3]):
            self.on_noun(at, noun)
        return at + 4

    def peek(self, at: int) -> Chunk | None:
        """The chunk at `at`, or None behind the end."""
        return self.chunks[at] if at < len(self.chunks) else None
