"""Chunks of a prompt read as clauses "subject relation object", for languages that put the subject first.

One pass from left to right. A *group* is what stands between two pauses or conjunctions; its first noun is what the
group is about ("a cat on a mat" is about the cat). A relation takes as its subject

* the first noun of its group ("a dog left of ..."), in a chain the object before it ("... a cat above a bench");
* the subject of the clause, when nothing stands before it ("... and above a bench") or a finite verb does
  ("the dog left of the cat is above ...");
* the noun after its object, when it opens the clause ("left of the tree is a bench").

Where two readings disagree, nothing is returned and the reason is noted.
"""

from attnsteer.steering.parser.chunks import Chunk
from attnsteer.steering.parser.groups import PAUSES, GroupReader
from attnsteer.steering.parser.lexicon import DIRECTIONS
from attnsteer.steering.parser.places import NO_NOUN, Placed, place_of_relation
from attnsteer.steering.parser.reference import Group, inverted_subject
from attnsteer.steering.parser.spans import ParseReport

_NAMES = {direction: name for name, direction in DIRECTIONS.items()}
_ELLIPTICAL = ("above", "below", "behind", "in front of", "near")


class ClauseReader(GroupReader):
    """Reads the places and relations of one prompt."""

    def read(self) -> ParseReport:
        """Read all chunks, once: relations and skipped clauses in reading order."""
        at = 0
        while at < len(self.chunks):
            chunk = self.chunks[at]
            at = int(getattr(self, "on_" + chunk.kind.replace(" ", "_"))(at, chunk))
        self.end_sentence()
        return self.found.report()

    # Places in the picture

    def on_place(self, at: int, chunk: Chunk) -> int:
        """Attach "on the left" to its noun; `compare_places` makes relations of them."""
        group, stop = self.group, self.after_frame(at + 1)
        if stop < 0:
            self.found.skip(chunk, self.chunks[at + 2], "it is a part of a thing, not a place beside it")
            return at + 3
        reason = ""
        if group.negated or group.moving:
            reason = "it is negated" if group.negated else "it is a direction of gaze or motion"
        elif group.nouns and group.linked and len(group.nouns) > 1 and chunk.value == "top":
            self.found.relate([group.nouns[-1]], "above", [group.nouns[0]], chunk)
        elif len(group.nouns) == 1 and not group.after_object:
            self.found.placed.append(Placed(group.nouns[0], chunk))
        elif group.after_object and group.number and not group.relative and self.sentence.subjects:
            self.found.placed.append(Placed(self.sentence.subjects[0][0], chunk))
        elif group.nouns or group.pronoun:
            reason = "it could belong to more than one noun"
        else:
            self.wait(chunk, self.peek(stop))
        if reason:
            self.found.skip(chunk, chunk, reason)
        return stop

    def wait(self, chunk: Chunk, following: Chunk | None) -> None:
        """Keep a place for the noun after it, or give it to the noun before the pause."""
        last = self.sentence.last
        free = last is not None and all(placed.noun is not last.nouns[0] for placed in self.found.placed[-2:])
        if last is not None and free and (following is None or following.kind in (*PAUSES, "conjunction")):
            self.found.placed.append(Placed(last.nouns[0], chunk))
            return
        if self.waiting is not None:
            self.found.skip(self.waiting, self.waiting, NO_NOUN)
        self.waiting = chunk

    def after_frame(self, at: int) -> int:
        """Index after "of the image" at `at`; -1 where it is "of" another thing; `at` where there is none."""
        of, noun = self.peek(at), self.peek(at + 1)
        if of is None or of.key != "of" or noun is None or noun.kind != "noun":
            return at
        return at + 2 if self.is_frame(noun) else -1

    def is_frame(self, noun: Chunk | None) -> bool:
        """Whether the noun is the picture itself: "the image"."""
        if noun is None or noun.kind != "noun" or noun.value != "the":
            return False
        return noun.key in self.lexicon.words("frames") and noun.end - noun.start == len(noun.key)

    # Relations

    def on_relation(self, at: int, chunk: Chunk) -> int:
        """Read one relation with its subject and object; returns the index of the next chunk to read."""
        following = self.peek(at + 1)
        merged = self.merge_directions(at)
        if merged is not None:
            return self.relate(at + 2, merged)
        place = place_of_relation(chunk.value)
        if place and self.is_frame(following):
            noun_end = self.chunks[at + 1].end
            return self.on_place(at, Chunk("place", chunk.start, noun_end, place, chunk.key)) + 1
        return self.relate(at, chunk)

    def merge_directions(self, at: int) -> Chunk | None:
        """One diagonal relation out of "to the left of and above", if the two are of different axes."""
        chunk, joint, second = self.chunks[at], self.peek(at + 1), self.peek(at + 2)
        if joint is None or joint.kind != "conjunction" or second is None or second.kind != "relation":
            return None
        one, two = DIRECTIONS.get(chunk.value, (0, 0)), DIRECTIONS.get(second.value, (0, 0))
        name = _NAMES.get((one[0] + two[0], one[1] + two[1])) if 0 in one and 0 in two else None
        if name is None or 0 in DIRECTIONS[name]:
            return None
        return Chunk("relation", chunk.start, second.end, name, second.key)

    def relate(self, at: int, chunk: Chunk) -> int:
        """Find both ends of the relation `chunk`, whose last word is at `at`, emit it and go on behind it."""
        objects, stop = self.objects_after(at + 1)
        pronoun = objects[0] if objects and objects[0].kind == "pronoun" else None
        if not objects:
            self.without_object(at, chunk)
            return at + 1
        owned = objects[0].value in self.lexicon.words("possessives")  # "above her head" speaks of the group's head
        subjects, reason, stop = self.subjects_of(chunk, pronoun is not None or owned, stop)
        if pronoun is not None and subjects:
            objects, reason = self.antecedents.find(pronoun.value, subjects, self.sentence, self.group)
        end = self.chunks[stop - 1]
        if self.group.negated:
            self.found.skip(
                subjects[0] if subjects else chunk, end, "it is negated; name it in a negative prompt instead"
            )
        elif reason or not subjects:
            self.found.skip(chunk, end, reason)
        else:
            self.found.relate(subjects, chunk.value, objects, chunk)
        self.continue_after(subjects, [] if pronoun else objects)
        return stop

    def on_own_side(self, at: int, chunk: Chunk) -> int:
        """Read "to its left": a relation with the pronoun inside."""
        sort = self.antecedents.sort_of(self.text[chunk.start : chunk.end])
        subjects, reason, stop = self.subjects_of(chunk, True, at + 1)
        objects: list[Chunk] = []
        if subjects:
            objects, reason = self.antecedents.find(sort, subjects, self.sentence, self.group)
        if reason or self.group.negated:
            self.found.skip(chunk, chunk, reason or "it is negated")
        else:
            self.found.relate(subjects, chunk.value, objects, chunk)
        self.continue_after(subjects, [])
        return stop

    def on_reciprocal(self, at: int, chunk: Chunk) -> int:
        """Read "a cat and a dog next to each other"."""
        partners = [*self.sentence.listed, *self.group.nouns[:1]]
        if self.group.negated or self.group.after_object or len(partners) < 2:
            reason = "it is negated" if self.group.negated else "it needs two things that are named one by one"
            self.found.skip(chunk, chunk, reason)
        else:
            for first, second in zip(partners, partners[1:], strict=False):
                self.found.relate([first], chunk.value, [second], chunk)
        return at + 1

    def objects_after(self, at: int) -> tuple[list[Chunk], int]:
        """Objects of a relation that ends before `at`, and the index behind them; "both a cat and a dog" are two."""
        chunk = self.peek(at)
        if chunk is None or chunk.kind not in ("noun", "pronoun"):
            return [], at
        if chunk.kind == "noun":
            self.sentence.nouns.append(chunk)
            joint, second = self.peek(at + 1), self.peek(at + 2)
            if chunk.value == "both" and joint and joint.kind == "conjunction" and second and second.kind == "noun":
                self.sentence.nouns.append(second)
                return [chunk, second], at + 3
        return [chunk], at + 1

    def without_object(self, at: int, chunk: Chunk) -> None:
        """A relation with nothing after it: "a table with a lamp above" means above the table."""
        group, following = self.group, self.peek(at + 1)
        ends = following is None or following.kind in (*PAUSES, "conjunction")
        if ends and group.linked and len(group.nouns) > 1 and not group.negated and chunk.value in _ELLIPTICAL:
            self.found.relate([group.nouns[-1]], chunk.value, [group.nouns[0]], chunk)
        else:
            self.found.skip(chunk, chunk, "no object follows it")

    def subjects_of(self, chunk: Chunk, pronoun_object: bool, stop: int) -> tuple[list[Chunk], str, int]:
        """Subjects of a relation whose object ends before `stop`: (subjects, reason if there are none, next index)."""
        group, sentence = self.group, self.sentence
        if not group.nouns and group.pronoun is None:
            opening = group.after == "" and not sentence.nouns_before(chunk)
            found = inverted_subject(self.chunks, stop, opening, self.lexicon)
            if found is not None:
                subjects, stop = found
                self.sentence.nouns.extend(subjects)
                self.group.inverted = subjects
                return subjects, "", stop
        subjects, reason = self.antecedents.subject(group, sentence, pronoun_object)
        return subjects, reason, stop

    def continue_after(self, subjects: list[Chunk], objects: list[Chunk]) -> None:
        """Open the group that begins with the object: a chain may follow."""
        group, sentence = self.group, self.sentence
        if group.inverted:
            sentence.subjects = [subjects]
            self.group = Group(after=group.after, nouns=list(subjects[:1]))
            return
        if subjects and subjects not in sentence.subjects[-1:]:
            keep = group.after_object or not group.nouns
            sentence.subjects = [*sentence.subjects[:2], subjects] if keep else [subjects]
        self.sentence.last = None if objects else self.sentence.last
        self.group = Group(after=group.after, nouns=list(objects[-1:]) or group.nouns[:1], after_object=bool(objects))
