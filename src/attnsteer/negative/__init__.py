"""Negative methods: one rule, one equation, one file each."""

from attnsteer.negative.method import NegativeMethod
from attnsteer.negative.nag import NAG
from attnsteer.negative.nasa import NASA
from attnsteer.negative.orthogonal import OrthogonalNegative
from attnsteer.negative.vsf import VSF

METHODS: tuple[type[NegativeMethod], ...] = (NAG, VSF, OrthogonalNegative, NASA)
"""All of them."""
