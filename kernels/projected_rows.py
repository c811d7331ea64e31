"""Queries, keys and values of rows, for the backends that make them of their other operators."""


def made_of(linear_rows, exchange_rows_):
    """`project_rows_` of a backend, made of two other operators of its own."""

    def project_rows_(
        rows, query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, keys, values, positions
    ):  # fmt: skip
        made = [
            linear_rows(rows, *layer)
            for layer in ((query_weight, query_bias), (key_weight, key_bias), (value_weight, value_bias))
        ]
        return made[0], exchange_rows_(keys, positions, made[1]), exchange_rows_(values, positions, made[2])

    return project_rows_
