"""What adjoints and schedules have in common, the parts of a game that are no modules."""

from __future__ import annotations

import inspect
from typing import Any


class Part:
    """A part of a game that may keep a state between steps.

    Its `repr` is the call that makes it, without the arguments left at default.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state that is kept between steps.

        Returns:
            Empty, unless a subclass keeps something.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the state.

        Args:
            state: What :meth:`state_dict` returned.
        """

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters.values()
        shown = [
            ("" if one.default is one.empty else f"{one.name}=") + repr(getattr(self, one.name))
            for one in parameters
            if hasattr(self, one.name) and getattr(self, one.name) != one.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
