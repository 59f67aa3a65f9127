"""Which relations a pipeline call asks for: those of its prompts, or those that the caller states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from attnsteer.steering.relations import Relation, Span, parse_relations, strip_markup

Reader = Callable[[str], Sequence[Relation]]
"""What finds relations in a prompt; `parse_relations` is one."""
_FURTHER = ("prompt_2", "prompt_3", "prompt_4")


def wanted_relations(
    call: Mapping[str, Any], known: Sequence[str], reader: Reader = parse_relations
) -> tuple[str | list[str], list[list[Relation]]]:
    """The call's prompt without relation markup, and the relations of each prompt.

    Args:
        call: Keywords of a pipeline call; its `steer_relations`, if any, override what the prompts say: a list of
            relations or (subject, relation, object) for one prompt, or one such list per prompt.
        known: Relation names that a caller may state, beside those that the parser knows and their synonyms.
        reader: Finds the relations of a prompt without markup.

    Raises: ValueError if the call has no prompt in words, or a relation is not in it but in a further prompt, which
        goes to another text encoder.
    """
    given, override = call.get("prompt"), call.get("steer_relations")
    if given is None:
        raise ValueError("steering reads the prompt's words: pass prompt=... rather than embeddings")
    plain = [strip_markup(prompt) for prompt in ([given] if isinstance(given, str) else given)]
    if override is None:
        wanted = [[*p.relations] or [*reader(p.text)] for p in plain]
        _check_further(call, wanted, reader)
    else:
        lists = _per_prompt(override, len(plain))
        wanted = [[_relation(p.text, r, known) for r in chosen] for p, chosen in zip(plain, lists, strict=True)]
    texts = [p.text for p in plain]
    return (texts[0] if isinstance(given, str) else texts), wanted


def _check_further(call: Mapping[str, Any], wanted: Sequence[Sequence[Relation]], reader: Reader) -> None:
    """Raise a ValueError if a text for another encoder names a relation where the prompt itself names none."""
    for name in _FURTHER:
        given = call.get(name)
        texts = [given] * len(wanted) if isinstance(given, str) else list(given or ())
        for text, own in zip(texts, wanted, strict=False):
            found = [] if own or not isinstance(text, str) else [*reader(strip_markup(text).text)]
            if found:
                said = f"{found[0].subject.text!r} {found[0].relation} {found[0].object.text!r}"
                raise ValueError(
                    f"{name} says {said}, prompt names no relation, and steering reads prompt: say it there too, or "
                    "pass steer_relations=[] to leave this call as it is"
                )


def _per_prompt(given: Sequence[Any], prompts: int) -> list[Sequence[Any]]:
    """One list of relations per prompt, from such lists or the relations of a single prompt."""
    flat = _are_relations(given)
    nested = all(isinstance(entry, list | tuple) and _are_relations(entry) for entry in given)
    if isinstance(given, str) or _is_triple(given) or not (nested or flat):
        raise ValueError(
            "steer_relations must be a list of (subject, relation, object), or one such list per prompt, got "
            f"{given!r}"
        )
    if not given:
        return [[]] * prompts
    lists = list(given) if nested else [given]
    if len(lists) != prompts:
        raise ValueError(f"steer_relations holds relations for {len(lists)} prompts, the call has {prompts}")
    return lists


def _are_relations(entries: Sequence[Any]) -> bool:
    return all(isinstance(entry, Relation) or _is_triple(entry) for entry in entries)


def _is_triple(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 3 and all(isinstance(part, str | Span) for part in entry)


def _relation(prompt: str, given: Relation | tuple[str, str, str], known: Sequence[str]) -> Relation:
    """A relation of this prompt; its phrases must stand in it."""
    parts = (given.subject, given.relation, given.object) if isinstance(given, Relation) else given
    subject, name, reference = parts
    if name in known:  # names of an objective's own, such as "is", mean nothing to the parser
        return replace(Relation.of(prompt, subject, "near", reference), relation=name)
    return Relation.of(prompt, subject, name, reference)
