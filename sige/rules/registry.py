"""The table of incremental rules: torch function -> rule.

A rule is called as ``rule(forward, func, *args, **kwargs)`` with the arguments of ``func``. It also sees calls that have no
active tensor among their arguments, and then runs ``func`` as it is (after counting its multiply-accumulates, where it has any).
"""

RULES = {}


def registrar(table):
    """A decorator for functions that ``table`` is to hold, under the torch functions that it is given."""

    def given(*functions):
        def register(handler):
            for function in functions:
                table[function] = handler
            return handler

        return register

    return given


rule = registrar(RULES)
