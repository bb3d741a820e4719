"""What third-party code on a MODEL is told of a batch's rows, and what it makes of that.

The host names the rows of a batch in `cond_or_uncond`, by the index of their condition: 0 is the positive prompt, 1
the negative. Guidance adds rows, runs some in calls of their own, and shows each under the index that others know.
Code that goes through the rows one by one (IP-Adapter, Attention Couple) is right with any of them. Code that looks
*the* positive row up (NAGuidance, StyleAligned), asks whether the negative one is there, or goes by a row's position,
is not: it would act on one of two. Such a look-up is noticed here, so that it can be answered as the host alone would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

_INDICES = "dco_indices"  # the host's own condition indices, where third parties are shown others


class KnownRows(list):
    """`cond_or_uncond` that reports look-ups: notice(value) for a search of a value, notice(None) for what goes by
    position. Going through the rows and counting all of them is not reported, nor are copies made by list()."""

    def __init__(self, rows: Iterable[int], notice: Callable[[int | None], None]):
        super().__init__(rows)
        self._notice = notice

    def index(self, value, *within):
        self._notice(value)
        return super().index(value, *within)

    def count(self, value):
        self._notice(value)
        return super().count(value)

    def __contains__(self, value):
        self._notice(value)
        return super().__contains__(value)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return KnownRows(super().__getitem__(place), self._notice)
        self._notice(None)
        return super().__getitem__(place)

    def __eq__(self, other):
        self._notice(None)
        return super().__eq__(other)

    def __ne__(self, other):
        return not self == other

    __hash__ = None  # as every list

    def copy(self):
        return self[:]

    def __copy__(self):
        return self[:]

    def __deepcopy__(self, memo):
        return self[:]

    def __reduce_ex__(self, protocol):  # what is saved or sent elsewhere is a plain list
        return list, (list(self),)


def host_indices(transformer_options: Mapping[str, Any]) -> list[int]:
    """The host's own condition index of each row."""
    return transformer_options.get(_INDICES) or transformer_options["cond_or_uncond"]


def shown_to_wrappers(options: dict[str, Any], visible: Callable[[list[int]], list[int]]) -> dict[str, Any]:
    """The model options with what a third-party function around the model call sees: visible(the host's indices)."""
    function = options.get("model_function_wrapper")
    if function is None:
        return options

    def with_known_indices(apply_model: Callable, args: dict) -> Tensor:
        indices = args["cond_or_uncond"]
        rows = visible(indices)
        inner = {**args["c"]["transformer_options"], "cond_or_uncond": rows, _INDICES: indices}
        return function(
            apply_model, {**args, "cond_or_uncond": rows, "c": {**args["c"], "transformer_options": inner}}
        )

    return {**options, "model_function_wrapper": with_known_indices}
