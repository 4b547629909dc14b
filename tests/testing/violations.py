"""What a check is expected to say."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

PASSES = None


def violation(message: str | None) -> Any:
    return nullcontext() if message is PASSES else pytest.raises(AssertionError, match=message)
