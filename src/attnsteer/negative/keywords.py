"""Keywords of a guided pipeline call that belong to the negative method: `nag_scale`, `vsf_negative_prompt`, ...

They are the method's prefix, "_" and the name of one of its settings, or "negative_prompt".
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from attnsteer.negative import METHODS
from attnsteer.negative.method import NegativeMethod
from attnsteer.negative.prompt import NegativePrompt


def taken_out(
    call: Mapping[str, Any], method: NegativeMethod | None
) -> tuple[dict[str, Any], NegativeMethod | None, NegativePrompt | None]:
    """Take the negative method's keywords out of a pipeline call.

    Args:
        call: All keywords of the call; one that is None counts as not given.
        method: The pipeline's negative method, if it has one.

    Returns: The other keywords, the method with the settings of this call, and its negative prompt: its own keyword's,
        else the call's `negative_prompt`, which is among the other keywords still.

    Raises: ValueError for keywords of another method, or of a setting that the method does not have.
    """
    own = {name: split for name in call if (split := _split(name)) is not None}
    rest = {name: value for name, value in call.items() if name not in own}
    given = {name: call[name] for name in own if call[name] is not None}
    if method is None:
        if given:
            other = own[min(given)][0]
            raise ValueError(
                f"{min(given)} and the like need a negative method: use guide(pipe, {other.__name__}(), ...)"
            )
        return rest, None, None
    settings = {field.name for field in fields(method)}
    changed: dict[str, Any] = {}
    prompt = rest.get("negative_prompt")
    for keyword, value in given.items():
        owner, name = own[keyword]
        if not isinstance(method, owner):
            raise ValueError(
                f"{keyword} is a keyword of {owner.__name__}, but this pipeline has {type(method).__name__}: use "
                f"{method.prefix}_{name}"
            )
        if name == "negative_prompt":
            prompt = value
        elif name in settings:
            changed[name] = value
        else:
            raise ValueError(f"{owner.__name__} has no setting {name!r}; it has {', '.join(sorted(settings))}")
    return rest, replace(method, **changed) if changed else method, prompt


def _split(keyword: str) -> tuple[type[NegativeMethod], str] | None:
    prefix, _, name = keyword.partition("_")
    owner = next((each for each in METHODS if each.prefix == prefix), None)
    return None if owner is None or not name else (owner, name)
