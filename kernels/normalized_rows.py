"""Rows through a group norm that they change, for the backends that make it of their other operators."""

from sige.kernels.joined_rows import joined


def made_of(update_statistics_, activate_rows):
    """`normalize_rows_` of a backend, made of two other operators of its own."""

    def normalize_rows_(
        rows, rest, rest_rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps, activation, slope,
        target, positions,
    ):  # fmt: skip
        rows = joined(rows, rest, rest_rows)
        old, totals, scale, shift = update_statistics_(
            rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, eps
        )
        if sample is not None:
            sample = sample.repeat_interleave(len(rows) // max(len(sample), 1))
        return old, totals, activate_rows(rows, scale, shift, sample, activation, slope, target, positions)

    return normalize_rows_
