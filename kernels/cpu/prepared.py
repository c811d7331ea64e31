"""Operators at one place of a replayed step, which calls them again and again with tensors of the same shapes and dtypes and the same
numbers: what follows from these is worked out the first time.
"""

from sige.kernels.cpu import convolution, fused, normalization
from sige.kernels.cpu.product import NOTHING, Product


class _Prepared:
    """An operator at one place, as a function. Whether it is served at once is asked when it is first called."""

    def __init__(self):
        self._at_once = None  # what carries it out; False: it is not served at once


class _ConvRowsFused(_Prepared):
    def __call__(self, *args):
        if self._at_once is None:
            joined = len(args) > 17 and args[17] is not None
            self._at_once = not joined and fused.compiled_at_once(*args[:17]) and Product(*args[:17])
            self._empty = args[2].new_empty(0, args[2].shape[0])
        if not self._at_once:
            return fused.conv_rows_fused(*args)
        raw, second = self._at_once.run(*args)
        return self._empty if raw is None else raw, self._empty if second is None else second


class _ConvRows(_Prepared):
    def __call__(self, source, index, weight, bias, groups, tiling=None):
        args = source, index, weight, bias, groups, index.shape[0], *NOTHING
        if self._at_once is None:
            self._at_once = fused.compiled_at_once(*args) and Product(*args)
        return (
            self._at_once.run(*args)[0] if self._at_once else convolution.conv_rows(source, index, weight, bias, groups)
        )


class _LinearRows(_Prepared):
    def __call__(self, rows, weight, bias):
        args = rows, None, weight, bias, 1, rows.shape[0], *NOTHING
        if self._at_once is None:
            self._at_once = fused.compiled_at_once(*args) and Product(*args)
        return self._at_once.run(*args)[0] if self._at_once else convolution.linear_rows(rows, weight, bias)


class _ActivateRows(_Prepared):
    def __call__(self, *args):
        if self._at_once is None:
            joined = len(args) > 8 and args[8] is not None
            self._at_once = not joined and fused.activated_at_once(*args[:8]) and fused.Activated(*args[:8])
        return self._at_once.run(*args) if self._at_once else fused.activate_rows(*args)


class _UpdateStatistics(_Prepared):
    def __call__(self, *args):
        if self._at_once is None:
            self._at_once = normalization.updated_at_once(*args)
        return normalization.updated(*args) if self._at_once else normalization.update_statistics_(*args)


_PREPARED = {
    "conv_rows_fused": _ConvRowsFused,
    "conv_rows": _ConvRows,
    "linear_rows": _LinearRows,
    "activate_rows": _ActivateRows,
    "update_statistics_": _UpdateStatistics,
}


def prepared(operator):
    """A function for one place that calls ``operator``; None where there is nothing to prepare."""
    made = _PREPARED.get(operator)
    return made and made()
