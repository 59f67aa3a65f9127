"""The file of judged pictures in Image-Generation-CoT: picture, question and verdict of each entry.

The published file is a list of conversations about pictures. Copies of it come as JSON or as JSON lines, under other
names for the same parts, or with question and answer beside each other; all of these are read:

    {"image": PATH, "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "yes"}]}
    {"images": [PATH], "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "no"}]}
    {"image_path": PATH, "question": QUESTION, "answer": "Yes."}

QUESTION holds "prompt: P. Does", where P is what the picture was made for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

NAMES: Final = ("orm.json", "orm.jsonl", "orm_train.json", "orm_train.jsonl")
_LISTS: Final = ("data", "items", "entries", "samples", "annotations", "train")
_PICTURES: Final = ("image", "images", "image_path", "img_path", "img", "path", "file_name")
_TALKS: Final = ("conversations", "conversation", "messages")
_QUESTIONS: Final = ("question", "query", "instruction", "input")
_ANSWERS: Final = ("answer", "response", "output", "label")
_ASKING: Final = ("human", "user")
_TELLING: Final = ("gpt", "assistant", "model")
_PROMPT: Final = re.compile(r"prompt:\s*(.*?)\.\s+Does\b", re.DOTALL | re.IGNORECASE)
_EXPECTED: Final = (
    'expected a JSON list, or JSON lines, of entries such as {"image": "...", "conversations": [{"from": "human", '
    '"value": "... prompt: P. Does ..."}, {"from": "gpt", "value": "yes"}]}'
)


class Judged(NamedTuple):
    """A picture, the prompt it was made for, and whether it was judged to show it."""

    image: str
    prompt: str
    right: bool


def judged_pictures(file: Path) -> list[Judged]:
    """The entries of the file, in order; those that ask something else, or answer neither yes nor no, are left out.

    Raises: ValueError if the file is another one; the message shows what is expected, and what was found.
    """
    entries = list(_entries(file))
    judged = [found for number, entry in enumerate(entries) if (found := _judged(entry, file, number)) is not None]
    if not judged:
        raise ValueError(
            f'{file}: none of its {len(entries)} entries asks "... prompt: P. Does ..." and is told yes or no; '
            f"the first is {_shown(entries[0]) if entries else 'missing'}; {_EXPECTED}"
        )
    return judged


def _entries(file: Path) -> Iterator[Any]:
    text = file.read_text("utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        yield from _lines(text, file)
        return
    if isinstance(content, Mapping):
        inner = next((content[name] for name in _LISTS if isinstance(content.get(name), list)), None)
        content = [content] if inner is None and _first(content, _PICTURES) is not None else inner
    if not isinstance(content, list):
        raise ValueError(f"{file} holds {_shown(json.loads(text))}; {_EXPECTED}")
    yield from content


def _lines(text: str, file: Path) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as problem:
                raise ValueError(f"{file}, line {number}: no JSON ({problem}); {_EXPECTED}") from problem


def _judged(entry: Any, file: Path, number: int) -> Judged | None:
    """What an entry says; None if it is about something else."""
    picture = _first(entry, _PICTURES) if isinstance(entry, Mapping) else None
    picture = picture[0] if isinstance(picture, list) and picture else picture
    question, answer = _talk(entry) if isinstance(entry, Mapping) else (None, None)
    if not isinstance(picture, str) or question is None or answer is None:
        lacking = "a picture" if not isinstance(picture, str) else "a question" if question is None else "an answer"
        raise ValueError(f"{file}: entry {number} lacks {lacking}: {_shown(entry)}; {_EXPECTED}")
    asked, verdict = _PROMPT.search(question), _verdict(answer)
    return None if asked is None or verdict is None else Judged(picture, asked[1].strip(" .\"'"), verdict)


def _talk(entry: Mapping[str, Any]) -> tuple[str | None, Any]:
    """The first question and the last answer of an entry."""
    turns = _first(entry, _TALKS)
    if not isinstance(turns, list):
        return _text(_first(entry, _QUESTIONS)), _first(entry, _ANSWERS)
    said = [
        (_first(turn, ("from", "role")), _text(_first(turn, ("value", "content"))))
        for turn in turns
        if isinstance(turn, Mapping)
    ]
    question = next((text for who, text in said if who in _ASKING), None)
    return question, next((text for who, text in reversed(said) if who in _TELLING), None)


def _text(value: Any) -> str | None:
    """A text, or the texts among parts such as {"type": "text", "text": ...}."""
    if isinstance(value, list):
        texts = [part.get("text") for part in value if isinstance(part, Mapping)]
        value = " ".join(text for text in texts if isinstance(text, str))
    return value if isinstance(value, str) else None


def _verdict(answer: Any) -> bool | None:
    if isinstance(answer, bool | int):
        return bool(answer)
    found = re.match(r"\W*(yes|no|true|false)\b", answer.strip(), re.IGNORECASE) if isinstance(answer, str) else None
    return None if found is None else found[1].lower() in ("yes", "true")


def _first(entry: Any, names: tuple[str, ...]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _shown(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False)[:200]}"
