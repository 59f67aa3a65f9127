"""Kinds of things, from a local copy of WordNet's noun files (`index.noun`, `data.noun`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path


class WordNet:
    """Which noun names a kind of which other.

    Args:
        folder: Holds `index.noun` and `data.noun`, as in WordNet 3.0's `dict` folder and in nltk's copy of it.

    Raises: FileNotFoundError if one of them is missing.

    Source: the file formats wndb(5WN) of WordNet 3.0.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        for name in ("index.noun", "data.noun"):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} holds no WordNet: {name} is missing; give the dict folder of WordNet 3.0, or "
                    "corpora/wordnet of nltk"
                )
        self._data = (self.folder / "data.noun").read_bytes()
        self._senses: dict[str, list[int]] = {}
        with (self.folder / "index.noun").open(encoding="utf-8") as lines:
            for line in lines:
                if not line.startswith(" "):  # the licence
                    lemma, _, count, *rest = line.split()
                    self._senses[lemma] = [int(offset) for offset in rest[-int(count) :]]
        self.related = cache(self._related)

    def senses(self, name: str) -> list[int]:
        """Synsets (byte offsets into data.noun) of a noun, the most common first; [] for an unknown one."""
        return self._senses.get(name.strip().lower().replace(" ", "_"), [])

    def kinds(self, synset: int, levels: int = 2) -> set[int]:
        """The synsets that a synset is a kind (or an instance) of, up to some levels above it."""
        found: set[int] = set()
        here = {synset}
        for _ in range(levels):
            here = {above for one in here for above in self._above(one)}
            found |= here
        return found

    def _related(self, first: str, second: str) -> bool:
        """Whether one of two nouns, in any of its senses, is a kind of the other, one or two levels above it."""
        mine, theirs = self.senses(first), self.senses(second)
        upwards = any(self.kinds(sense) & set(theirs) for sense in mine)
        return upwards or any(self.kinds(sense) & set(mine) for sense in theirs)

    def _above(self, synset: int) -> list[int]:
        end = self._data.index(b"\n", synset)
        fields = self._data[synset:end].split(b" | ")[0].decode("utf-8").split()
        words = int(fields[3], 16)
        pointers = fields[5 + 2 * words :]
        return [
            int(pointers[i + 1]) for i in range(0, 4 * int(fields[4 + 2 * words]), 4) if pointers[i] in ("@", "@i")
        ]
