"""Who a clause is about: subjects, pronouns and inverted clauses of languages that put the subject first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from attnsteer.steering.parser.chunks import Chunk
from attnsteer.steering.parser.lexicon import Lexicon, fold_words

_MEMORY = 12  # nouns that a pronoun may look back on
_REACH = 8  # chunks that are searched for the subject of an inverted clause

TWO_READINGS = "it could be about more than one of the things before it"
UNCLEAR_PRONOUN = "the pronoun could mean more than one thing, or none; name the thing instead"
NO_SUBJECT = "nothing that it could be about stands before it"


@dataclass(slots=True)
class Group:
    """What stands between two pauses, conjunctions or relations.

    Args:
        after: What opened it: "" (start of the sentence), "comma" or the conjunction.
        nouns: Its nouns; the first is what it is about.
        after_object: Its first noun is the object of the relation before it.
        number: "singular" or "plural" once a finite verb came after the nouns, else "".
        pronoun: Its subject, where that is a pronoun.
        relative: A "that" or "which" came.
        negated: A negation came.
        linked: A "with" came.
        moving: The last verb tells a direction of gaze or motion.
        apart: A verb came whose object stands elsewhere ("looks at a dog").
        unclear: Holds "between a and b", after which a relation may be about any of them.
        inverted: Subjects found behind the object.
    """

    after: str = ""
    nouns: list[Chunk] = field(default_factory=list)
    after_object: bool = False
    number: str = ""
    pronoun: Chunk | None = None
    relative: bool = False
    negated: bool = False
    linked: bool = False
    moving: bool = False
    apart: bool = False
    unclear: bool = False
    inverted: list[Chunk] = field(default_factory=list)


@dataclass(slots=True)
class Sentence:
    """What a sentence has named so far.

    Args:
        nouns: All nouns in order.
        subjects: Subjects of the relations of the current clause; the first is that of the main verb.
        listed: What the groups joined to the current one are about, as long as none has a relation.
        last: The last closed group that had a noun.
        dangling: That group came after a relation and has none itself.
        topic: What a pronoun of this sentence was found to mean.
    """

    nouns: list[Chunk] = field(default_factory=list)
    subjects: list[list[Chunk]] = field(default_factory=list)
    listed: list[Chunk] = field(default_factory=list)
    last: Group | None = None
    dangling: bool = False
    topic: Chunk | None = None

    def close(self, group: Group) -> None:
        """Remember a finished group."""
        if not group.nouns:
            return
        self.listed = [] if group.after_object else [*self.listed[-_MEMORY:], group.nouns[0]]
        self.last = group
        self.dangling = not group.after_object and bool(self.subjects)

    def nouns_before(self, chunk: Chunk) -> bool:
        """Whether a noun stands before `chunk` in the sentence."""
        return bool(self.nouns) and self.nouns[0].start < chunk.start


class Antecedents:
    """Finds subjects and the meaning of pronouns; keeps the nouns of the sentence before."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.nouns: list[Chunk] = []
        self.subject_before: Chunk | None = None

    def end_sentence(self, sentence: Sentence) -> None:
        """Make `sentence` the one that the next looks back on (one without nouns is passed over)."""
        if sentence.nouns:
            self.nouns = sentence.nouns[-_MEMORY:]
            if sentence.topic is not None and sentence.topic not in self.nouns:
                self.nouns.append(sentence.topic)
            self.subject_before = sentence.subjects[0][0] if sentence.subjects else None

    def subject(self, group: Group, sentence: Sentence, pronoun_object: bool) -> tuple[list[Chunk], str]:
        """Subjects of a relation in `group`, or the reason why there are none."""
        if group.unclear and not group.number:
            return [], TWO_READINGS
        if not group.nouns:
            return self._subject_from_before(group, sentence)
        if group.after_object:
            return self._subject_after_object(group, sentence, pronoun_object)
        if pronoun_object and len(group.nouns) > 1:
            return [group.nouns[-1]], ""
        if group.apart and len(group.nouns) > 1:
            return [], TWO_READINGS
        if group.number == "plural" and sentence.listed:
            return [*sentence.listed, group.nouns[0]], ""
        return [group.nouns[0]], ""

    def _subject_from_before(self, group: Group, sentence: Sentence) -> tuple[list[Chunk], str]:
        last = sentence.last
        if group.pronoun is not None:
            return self._pronoun_subject(group.pronoun, sentence)
        if group.relative and last is not None:
            return [last.nouns[-1]], ""
        if sentence.subjects:
            if sentence.dangling or (len(sentence.subjects) > 1 and not group.number):
                return [], TWO_READINGS
            return sentence.subjects[0], ""
        return ([last.nouns[0]], "") if last is not None else ([], NO_SUBJECT)

    def _subject_after_object(self, group: Group, sentence: Sentence, pronoun_object: bool) -> tuple[list[Chunk], str]:
        if group.number and not group.relative and sentence.subjects:
            return sentence.subjects[0], ""
        if len(group.nouns) == 1 or (pronoun_object and group.linked):
            return [group.nouns[-1]], ""
        return [], TWO_READINGS

    def _pronoun_subject(self, pronoun: Chunk, sentence: Sentence) -> tuple[list[Chunk], str]:
        """What "it" means in "It is above a bird": the subject of the clause before, or the only noun so far."""
        if pronoun.value == "unknown":
            return [], UNCLEAR_PRONOUN
        if sentence.subjects:
            return (sentence.subjects[0], "") if len(sentence.subjects) == 1 else ([], UNCLEAR_PRONOUN)
        before = [noun for noun in sentence.nouns[-_MEMORY:] if noun.start < pronoun.start]
        if not before and self.subject_before is not None:
            return [self.subject_before], ""
        return self._choose(pronoun.value, before or self.nouns, sentence)

    def find(self, sort: str, subjects: list[Chunk], sentence: Sentence, group: Group) -> tuple[list[Chunk], str]:
        """What a pronoun object means: (nouns, reason if it is not clear).

        Args:
            sort: "thing", "person", "plural" or "unknown".
            subjects: Subjects of the relation, which the pronoun cannot mean.
            sentence: Its sentence so far.
            group: Its group: "a table with a lamp above it" means the table.
        """
        head = group.nouns[0] if group.nouns and not group.after_object else None
        if head is not None and head not in subjects and self._fitting(sort, [head]):
            return [head], ""
        if sort == "plural" and len(sentence.listed) > 1 and not sentence.subjects:
            others = [noun for noun in sentence.listed if noun not in subjects]
            return (others, "") if len(others) > 1 else ([], UNCLEAR_PRONOUN)
        here = [noun for noun in sentence.nouns[-_MEMORY:] if noun not in subjects]
        before = [noun for noun in here if noun.start < subjects[0].start]
        return self._choose(sort, before or here or [noun for noun in self.nouns if noun not in subjects], sentence)

    def _choose(self, sort: str, candidates: list[Chunk], sentence: Sentence) -> tuple[list[Chunk], str]:
        fitting = self._fitting(sort, candidates)
        if sentence.topic in fitting:
            fitting = [noun for noun in fitting if noun is sentence.topic]
        if len(fitting) != 1:
            return [], UNCLEAR_PRONOUN
        sentence.topic = fitting[0]
        return fitting, ""

    def _fitting(self, sort: str, nouns: list[Chunk]) -> list[Chunk]:
        """Nouns that a pronoun of this sort may mean; "he" may mean an animal where no person is named."""
        persons = [noun for noun in nouns if noun.key in self.lexicon.words("persons")]
        if sort == "person":
            return persons or nouns
        if sort == "thing":
            return [noun for noun in nouns if noun not in persons]
        return nouns if sort == "plural" else []

    def sort_of(self, phrase: str) -> str:
        """Sort of the possessive in a phrase such as "to its left"."""
        words = set(fold_words(phrase))
        if words & {"his", "her"}:
            return "person"
        return "thing" if "its" in words else "plural"


def inverted_subject(
    chunks: Sequence[Chunk], at: int, opening: bool, lexicon: Lexicon
) -> tuple[list[Chunk], int] | None:
    """Subject behind the object: "left of the tree is a bench", "above the sofa, a painting".

    Args:
        chunks: All chunks.
        at: Index behind the relation's object.
        opening: The relation opens the sentence; then a comma may stand in place of the verb.
        lexicon: Verbs that may stand before their subject.

    Returns: (subjects, index behind them), or None where the clause is not inverted.
    """
    verb, number, pause, index = False, "", False, at
    while index < min(at + _REACH, len(chunks)):
        chunk = chunks[index]
        if chunk.kind == "noun":
            if not verb and not ((pause or index == at) and chunk.value):
                return None
            return _joined_subjects(chunks, index, number)
        following = chunks[index + 1].kind if index + 1 < len(chunks) else ""
        if chunk.kind == "preposition" and following == "noun" and not verb and not pause:
            index += 1
        elif chunk.kind == "existential" or _may_invert(chunk, lexicon):
            verb, number = True, chunk.value if chunk.kind == "copula" else number
        elif chunk.kind == "comma" and opening and not pause:
            pause = True
        elif chunk.kind != "participle" or not verb:
            return None
        index += 1
    return None


def _may_invert(chunk: Chunk, lexicon: Lexicon) -> bool:
    if chunk.kind == "copula":
        return chunk.key in ("is", "are", "was", "were")
    return chunk.kind == "verb" and chunk.key in lexicon.words("inverting_forms")


def _joined_subjects(chunks: Sequence[Chunk], index: int, number: str) -> tuple[list[Chunk], int]:
    """The noun at `index`, and after "are" the one joined to it: "left of the tree are a bench and a dog"."""
    second, behind = index + 2, index + 3
    if number == "plural" and second < len(chunks) and chunks[index + 1].key == "and":
        ends = behind >= len(chunks) or chunks[behind].kind in ("comma", "stop")
        if ends and chunks[second].kind == "noun":
            return [chunks[index], chunks[second]], behind
    return [chunks[index]], index + 1
