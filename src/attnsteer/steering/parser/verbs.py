"""Where a run of words stops being a noun phrase: "dog | happily sitting", "boy | reads", "chair | painted red".

There is no dictionary of English here, only a list of verbs that prompts use, their regular forms, and the look of
-ing, -ed and -ly words; nouns that share that look (painting, seabed, butterfly) are listed in the lexicon.
"""

from collections.abc import Callable
from dataclasses import dataclass

from attnsteer.steering.parser.lexicon import Lexicon
from attnsteer.steering.parser.words import Word

SINGULAR = frozenset({"a", "an", "another", "one", "this", "each", "every", "single"})
_DEFINITE = SINGULAR | {"the", "his", "her", "its", "my", "your", "our", "their"}
_AFTER_SUBJECT = ("relative", "pronoun", "copula", "negation", "existential", "conjunction", "noun", "place")


@dataclass(frozen=True)
class Verbs:
    """Tells verbs and adverbs from nouns among the words of a prompt.

    Args:
        words: All words of the prompt.
        lexicon: Word classes.
        class_of: Class of the word at an index ("word" for content words).
    """

    words: list[Word]
    lexicon: Lexicon
    class_of: Callable[[int], str]

    def key(self, index: int) -> str:
        """Lower-case form of the word at `index`."""
        return self.words[index].key

    def has(self, index: int, name: str) -> bool:
        """Whether the word at `index` is in the class `name`."""
        return self.words[index].key in self.lexicon.words(name)

    def is_adverb(self, index: int) -> bool:
        """Whether the word is a listed adverb or ends in -ly."""
        key = self.key(index)
        return self.class_of(index) == "adverb" or (
            key.endswith("ly") and len(key) > 4 and not self.has(index, "ly_nouns")
        )

    def form(self, index: int) -> str:
        """Form of a verb: "finite", "participle", or "" for other words, by the look of the word alone."""
        if self.class_of(index) != "word":
            return ""
        if self.has(index, "s_forms") or self.has(index, "irregular_verbs"):
            return "finite"
        key = self.key(index)
        ends_in_ing = key.endswith("ing") and len(key) > 4 and not self.has(index, "ing_nouns")
        return "participle" if ends_in_ing or self.has(index, "ing_forms") or self.has(index, "ed_forms") else ""

    def opens(self, first: int, stop: int, before: str) -> bool:
        """Whether a run [first, stop) without article begins with a verb: "that stands", "sitting", ", sits".

        Args:
            first: Index of the run's first word.
            stop: Index behind the run.
            before: Kind of the chunk before it.
        """
        form, after_subject = self.form(first), before in _AFTER_SUBJECT
        if not form or self.has(first, "ing_nouns"):
            return False
        if form == "finite":
            return after_subject or not self.has(first, "noun_verbs")
        adjective = stop > first + 1 and not self.has(first, "transitive")
        return not adjective or (after_subject and before != "conjunction")

    def cut(self, first: int, stop: int, determiner: str, before: str) -> tuple[int, int]:
        """Split a run [first, stop): (index behind the noun phrase, index behind its verb group).

        Both are `stop` where the run holds no verb.
        """
        for index in range(first + 1, stop):
            if self._begins(index, stop, determiner, before):
                noun_stop = index
                while noun_stop > first + 1 and self.is_adverb(noun_stop - 1):
                    noun_stop -= 1
                return noun_stop, index + 1 if self._content_in(index + 1, stop) else stop
        return stop, stop

    def _content_in(self, start: int, stop: int) -> bool:
        """Whether a thing is named in [start, stop), not only verbs, adverbs and colours."""
        return any(
            not (self.form(index) or self.is_adverb(index) or self.has(index, "colors"))
            for index in range(start, stop)
        )

    def _begins(self, index: int, stop: int, determiner: str, before: str) -> bool:
        key, form, last = self.key(index), self.form(index), index == stop - 1
        if self.key(index - 1).endswith("'s") and form != "participle":
            return False  # "a person's face"
        if not last and self.has(index, "lettering"):
            return True  # "a sign saying hello"
        if form == "finite":
            noun_too = self.has(index, "noun_verbs")
            return (not noun_too or (last and determiner in _DEFINITE)) and (last or self.has(index, "s_forms"))
        if form == "participle":
            return self.has(index, "transitive") or not self._content_in(index + 1, stop)
        if not last:
            return False
        if key.endswith("ed") and len(key) > 4 and not self.has(index, "ed_nouns"):
            return True
        next_is_article = stop < len(self.words) and self.class_of(stop) == "determiner"
        if next_is_article and before != "relation" and key.endswith("s") and not key.endswith(("ss", "us", "is")):
            return determiner in SINGULAR
        previous = self.key(index - 1)
        return previous.endswith("s") and not previous.endswith("ss") and self.has(index, "verbs")
