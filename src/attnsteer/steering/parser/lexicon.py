"""Words and phrases of a language, as data: what `parse_relations` knows about it.

A lexicon is a JSON file: relation phrases under their canonical names, idioms that only look like relations, and
word classes. `lexicons/en.json` is the one read by default; phrases are looked up word by word in a trie, the
longest match winning, so that adding a thousand phrases costs nothing.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

# Where the subject stands as seen from the object, in the picture: x grows to the right, y downwards.
DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
    "above and to the left of": (-1, -1),
    "above and to the right of": (1, -1),
    "below and to the left of": (-1, 1),
    "below and to the right of": (1, 1),
}
RELATIONS: tuple[str, ...] = (*DIRECTIONS, "near", "in front of", "behind")
PLACES: Mapping[str, tuple[int | None, int | None, int | None]] = {
    "left": (-1, None, None),
    "right": (1, None, None),
    "top": (None, -1, None),
    "bottom": (None, 1, None),
    "center": (0, 0, None),
    "top left": (-1, -1, None),
    "top right": (1, -1, None),
    "bottom left": (-1, 1, None),
    "bottom right": (1, 1, None),
    "front": (None, None, -1),
    "back": (None, None, 1),
}
_PHRASE_KINDS = ("relations", "pronoun_relations", "reciprocals", "places", "unsupported")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_END = ""  # key of a phrase's meaning in a trie node; no word is empty


class Meaning(NamedTuple):
    """What a phrase means: its kind (`relations`, `places`, `idioms`, ...) and value (canonical name or reason)."""

    kind: str
    value: str


@dataclass(frozen=True)
class Lexicon:
    """Phrases (as a trie over lower-case words) and word classes of one language.

    Args:
        language: English name of the language, for messages.
        trie: Nested mapping word -> node; the key "" holds the `Meaning` of the phrase that ends there.
        classes: Word classes of the JSON file, by name ("determiners", "prepositions", ...).
        object_first: The language names the object before the subject, as Korean does.
    """

    language: str
    trie: dict[str, Any]
    classes: Mapping[str, frozenset[str]]
    object_first: bool = False

    def words(self, name: str) -> frozenset[str]:
        """Words of the class `name` ("determiners", "pronouns.thing", ...); empty where the language has none."""
        return self.classes.get(name, frozenset())

    def longest_match(self, words: list[str], start: int) -> tuple[int, Meaning] | None:
        """Longest phrase that begins at word `start`: (index after its last word, meaning), or None."""
        node: dict[str, Any] | None = self.trie
        found = None
        for index in range(start, len(words)):
            node = None if node is None else node.get(words[index])
            if node is None:
                break
            if _END in node:
                found = (index + 1, node[_END])
        return found

    def with_phrases(self, phrases: Mapping[str, str]) -> "Lexicon":
        """A copy that also knows `phrases`, a mapping from phrase to canonical relation name.

        Raises: ValueError if a name is not canonical or a phrase has no word.
        """
        trie = _copy(self.trie)
        for phrase, name in phrases.items():
            if name not in RELATIONS:
                raise ValueError(f"lexicon: {name!r} is not a relation; use one of {', '.join(RELATIONS)}")
            _add(trie, phrase, Meaning("relations", name))
        return replace(self, trie=trie)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> "Lexicon":
        """Build a lexicon from the content of a JSON file (see `lexicons/en.json` for the keys; all are optional).

        Raises: ValueError if a relation or place is not a canonical one, or a phrase has no word.
        """
        trie: dict[str, Any] = {}
        for kind in _PHRASE_KINDS:
            for value, phrases in data.get(kind, {}).items():
                _check_value(kind, value)
                for phrase in phrases:
                    _add(trie, phrase, Meaning(kind, value))
        for kind in ("idioms", "intros"):
            for phrase in data.get(kind, ()):
                _add(trie, phrase, Meaning(kind, "a fixed phrase that places nothing"))
        for word, reason in data.get("vague", {}).items():
            _add(trie, word, Meaning("unsupported", reason))
        object_first = data.get("order") == "object first"
        return cls(str(data.get("language", "unnamed")), trie, _word_classes(data), object_first)


@cache
def load_lexicon(name: str = "en") -> Lexicon:
    """Read a lexicon: "en" or "ko" from the package, or any JSON file of the same form by its path.

    Raises: ValueError if there is no such lexicon or its content is wrong.
    """
    folder = Path(__file__).parent / "lexicons"
    path = folder / f"{name}.json" if re.fullmatch(r"\w+", name) else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise ValueError(f"no lexicon {name!r}: give one of {known}, or the path of a JSON file")
    try:
        return Lexicon.from_mapping(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def canonical_relation(phrase: str, lexicon: Lexicon | None = None) -> str:
    """Canonical name of a relation phrase: "left of", "left" -> "to the left of", "above_left" -> "above and ...".

    Raises: ValueError if the phrase is not a known relation.
    """
    lexicon = lexicon or load_lexicon("ko" if has_hangul(phrase) else "en")
    words = fold_words(phrase)
    for candidate in (words, [*words, "of"]):
        match = lexicon.longest_match(candidate, 0)
        if match and match[0] == len(candidate) and match[1].kind == "relations":
            return match[1].value
    raise ValueError(f"{phrase!r} is not a known relation; use one of {', '.join(RELATIONS)}, or a synonym of them")


def has_hangul(text: str) -> bool:
    """Whether the text has Korean syllables."""
    return re.search(r"[가-힣]", text) is not None


def fold_words(text: str) -> list[str]:
    """Words of `text` as the lexicon compares them: lower case, split at hyphens and underscores."""
    return _WORD.findall(text.casefold().replace("_", " ").replace("’", "'"))


def _expand(phrase: str) -> Iterator[str]:
    """All readings of a phrase with alternatives: "(on|at|) left" -> "on left", "at left", "left"."""
    parts = [part.split("|") for part in re.split(r"[()]", phrase)]
    if any(len(part) > 1 for part in parts[0::2]) or phrase.count("(") != phrase.count(")"):
        raise ValueError(f"lexicon phrase {phrase!r}: write alternatives in round brackets, as (on|at|)")
    return (" ".join(choice) for choice in product(*parts))


def _add(trie: dict[str, Any], phrase: str, meaning: Meaning) -> None:
    for reading in _expand(phrase):
        words = fold_words(reading)
        if not words:
            raise ValueError(f"lexicon phrase {phrase!r} has no word in it")
        node = trie
        for word in words:
            node = node.setdefault(word, {})
        # The first meaning of a phrase stays, except that a user's relation outranks everything.
        if meaning.kind == "relations" or _END not in node:
            node[_END] = meaning


def _copy(trie: dict[str, Any]) -> dict[str, Any]:
    return {word: node if word == _END else _copy(node) for word, node in trie.items()}


def _check_value(kind: str, value: str) -> None:
    allowed: tuple[str, ...] | None = tuple(PLACES) if kind == "places" else RELATIONS
    if kind != "unsupported" and value not in (allowed or ()):
        raise ValueError(f"lexicon: {value!r} is not one of the {kind}; use {', '.join(allowed or ())}")


def _word_classes(data: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    classes: dict[str, frozenset[str]] = {}
    for key, value in data.items():
        if key in _PHRASE_KINDS or key in ("idioms", "intros", "vague"):
            continue
        if isinstance(value, list):
            classes[key] = frozenset(word.casefold().replace("’", "'") for word in value)
        elif isinstance(value, dict):
            for sub, words in value.items():
                classes[f"{key}.{sub}"] = frozenset(word.casefold().replace("’", "'") for word in words)
    verbs = data.get("verbs", ())
    classes["s_forms"] = frozenset(form for verb in verbs for form in _third_person(verb))
    classes["ing_forms"] = frozenset(form for verb in verbs for form in _suffixed(verb, "ing"))
    classes["ed_forms"] = frozenset(form for verb in verbs for form in _suffixed(verb, "ed"))
    for name in ("inverting", "gaze", "apart"):
        classes[f"{name}_forms"] = frozenset(form for verb in data.get(name, ()) for form in _all_forms(verb))
    return classes


def _all_forms(verb: str) -> tuple[str, ...]:
    return (verb, *_third_person(verb), *_suffixed(verb, "ing"), *_suffixed(verb, "ed"))


def _third_person(verb: str) -> tuple[str, ...]:
    if re.search(r"(s|x|ch|sh|z|o)$", verb):
        return (verb + "es",)
    if re.search(r"[^aeiou]y$", verb):
        return (verb[:-1] + "ies",)
    return (verb + "s",)


def _suffixed(verb: str, ending: str) -> tuple[str, ...]:
    """Regular forms with -ing or -ed; a doubled consonant is offered beside the plain form (sitting, siting)."""
    if verb.endswith("ie") and ending == "ing":
        return (verb[:-2] + "ying",)
    if verb.endswith("e"):
        return (verb[:-1] + ending,)
    if re.search(r"[^aeiou]y$", verb) and ending == "ed":
        return (verb[:-1] + "ied",)
    return (verb + ending, verb + verb[-1] + ending)
