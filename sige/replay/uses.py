"""Who makes and who takes the tensors of a traced step."""

import torch

from sige.replay.sharing import arguments, results, written
from sige.replay.tracer import Look, Ref, references

_aten, _sige = torch.ops.aten, torch.ops.sige


class Uses:
    """What there is to ask of a list of calls.

    calls: as `Tracer.calls`.   looks: number -> Look.   at_end: numbers of tensors that the step gives or leaves behind.
    users: number -> places of the calls that take it.   maker: number -> place of the call that gives it.
    """

    def __init__(self, calls, looks, at_end):
        self.calls, self.looks, self.at_end = calls, looks, at_end
        self.users, self.maker = {}, {}
        for place, call in enumerate(calls):
            for ref in {*references(arguments(call))}:
                self.users.setdefault(ref, []).append(place)
            for ref in results(call):
                self.maker.setdefault(ref, place)

    def empty(self):
        """The number of a result that nobody wants."""
        number = Ref(max(self.looks) + 1)
        self.looks[number] = Look((0,), torch.float32, 0)
        return number

    def only_user(self, ref):
        """The place of the one call that takes ``ref``, None where there are several or the step gives it."""
        users = self.users.get(ref, [])
        return users[0] if len(users) == 1 and ref not in self.at_end and self.calls[users[0]][0] != "journal" else None

    def picked(self, rows, place):
        """(place, map, row numbers) of the call that picks ``rows`` of a map for the call at ``place`` alone; None if there is none."""
        maker = self.maker.get(rows)
        if maker is None or self.only_user(rows) != place:
            return None
        func, args, *_ = self.calls[maker]
        if func is _aten.index_select.default and args[1] == 0 and len(self.looks[args[0]].shape) == 2:
            return maker, args[0], args[2]
        return (maker, *args) if func is _sige.gather_rows.default else None

    def memory(self, refs):
        """The memory of tensors, None left out."""
        return {self.looks[ref].storage for ref in refs if ref is not None}

    def undisturbed(self, first, last, read, changed=()):
        """Whether no call between two places, these left out, writes to the memory of the tensors ``read``, or reads or writes that of
        those that are ``changed``."""
        read, changed = self.memory(read), self.memory(changed)
        for call in self.calls[first + 1 : last]:
            if self.memory(written(call)) & (read | changed) or self.memory(references(arguments(call))) & changed:
                return False
        return True
