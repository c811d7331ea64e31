"""Fewer operators for a traced step: what follows a convolution or a norm's map goes into the operator that makes the rows.

    [rows of a map ->] conv_rows or linear_rows [-> first rows] [-> + vector] [-> + residual, or rows of one] [-> affine_rows]
        [-> activate_rows] [-> exchange_rows_]
    affine_rows or activate_rows [-> activate_rows] [-> exchange_rows_]
    normalize_map [-> normalize_map] [-> conv_map]

become one operator each, ``conv_rows_fused``, ``activate_rows`` and ``conv_map_fused`` or ``normalize_map``. The fused operator stands
in the place of the last of those that it stands for, where all that it takes is known. It may stand there when nothing in between needs
what only it makes, or writes to what it reads. On the CPU its bits are those of the operators one by one.
"""

import torch

from sige.replay.merging import merged
from sige.replay.sharing import arguments, results, shared, straightened, written
from sige.replay.tracer import Ref, references
from sige.replay.uses import Uses

_aten, _sige = torch.ops.aten, torch.ops.sige


def fuse(calls, looks, at_end, merge=False):
    """The living calls of a step with chains of them replaced.

    calls: as `Tracer.calls`.   looks: number -> Look.   at_end: numbers of tensors that the step gives or leaves behind.
    merge: also save launches where that saves nothing else: see `sige.replay.merging`.
    """
    calls = straightened(shared(calls, looks, at_end), looks, at_end)
    for begin in (_Convolution, _Affine, _Map):
        calls = _Fusion(calls, looks, at_end).run(begin)
    return merged(calls, looks, at_end) if merge else calls


class _Chain:
    """Calls that become one: their places in the list, the number of what the last one gives, and what else there is to know."""

    def __init__(self, place, result):
        self.places, self.result = [place], result
        self.raw = None  # result before norm and activation, once these are in
        self.scale = self.shift = self.sample = self.target = self.positions = self.residual_rows = None
        self.activation, self.slope = "none", 0.0

    def copy(self):
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, places=list(self.places))
        return other

    def after(self):
        """The arguments that convolution and affine map share, in their order."""
        return self.activation, self.slope, self.target, self.positions


class _Fusion(Uses):
    """One pass over a list of calls."""

    def __init__(self, calls, looks, at_end):
        super().__init__(calls, looks, at_end)
        self.taken = set()

    def run(self, begin):
        """The calls with every chain that ``begin`` finds replaced."""
        instead, gone = {}, set()
        for place in range(len(self.calls)):
            chain = begin.at(self, place)
            if chain is not None and len(chain.places) > 1 and not self.taken & set(chain.places):
                self.taken |= set(chain.places)
                instead[max(chain.places)] = begin.call(self, chain)
                gone |= set(chain.places)
        return [
            instead.get(place, call) for place, call in enumerate(self.calls) if place in instead or place not in gone
        ]

    def allowed(self, chain):
        """Whether the chain may run where its last call stands: see the top of this file."""
        inner, read = set(), set()  # what its calls so far gave, and the memory that they took
        for place in range(min(chain.places), max(chain.places)):
            call = self.calls[place]
            if place in chain.places:
                inner.update(results(call))
                read.update(self.looks[ref].storage for ref in references(arguments(call)))
            elif inner & {*references(arguments(call))} or read & {self.looks[ref].storage for ref in written(call)}:
                return False
        return True

    def grown(self, chain, *steps):
        """The chain with as many of ``steps`` as can be; a step gives the longer chain or None."""
        for step in steps:
            longer = step(self, chain.copy())
            if longer is not None and self.allowed(longer):
                chain = longer
        return chain


def _is_activation(call):
    """Whether a call is an activation alone, of rows."""
    return call[0] is _sige.activate_rows.default and call[1][1] is None and call[1][6] is None


def _activation(fusion, chain):
    made = chain.raw is not None  # else of the rows themselves, which others may need too
    places = [place for place in fusion.users.get(chain.result, ()) if _is_activation(fusion.calls[place])]
    if len(places) != 1 or made and fusion.only_user(chain.result) is None:
        return None
    _, args, _, (result,) = fusion.calls[places[0]]
    chain.activation, chain.slope = args[4:6]
    chain.places.append(places[0])
    chain.raw = chain.raw if made else chain.result
    chain.result = result
    return chain


def _affine(fusion, chain):
    """The norm's map of the rows, where its scale and shift do not depend on them."""
    places = [
        place
        for place in fusion.users.get(chain.result, ())
        if fusion.calls[place][0] is _sige.affine_rows.default and fusion.calls[place][1][0] == chain.result
    ]
    if len(places) != 1:
        return None
    _, (_, scale, shift, sample), _, (result,) = fusion.calls[places[0]]
    one = chain.vector is None or fusion.looks[chain.vector].shape[0] == 1
    if not one and chain.sample != sample:
        return None
    chain.scale, chain.shift, chain.sample = scale, shift, sample
    chain.places.append(places[0])
    chain.raw, chain.result = chain.result, result
    return chain


def _exchange(fusion, chain):
    """Into the remembered map that the next convolution reads."""
    places = [
        place
        for place in fusion.users.get(chain.result, ())
        if fusion.calls[place][0] is _sige.exchange_rows_.default and fusion.calls[place][1][2] == chain.result
    ]
    made = chain.raw is not None  # else the rows themselves, which others may need too
    if len(places) != 1 or made and fusion.only_user(chain.result) is None:
        return None
    target, positions, _ = fusion.calls[places[0]][1]
    if chain.residual_rows is not None and fusion.looks[chain.residual].storage == fusion.looks[target].storage:
        return None  # its rows are read while others are written
    chain.target, chain.positions = target, positions
    chain.places.append(places[0])
    chain.raw = chain.raw if made else chain.result
    chain.result = fusion.calls[places[0]][3][0]
    return chain


class _Affine:
    """Chains that begin with a norm's map or an activation."""

    @staticmethod
    def at(fusion, place):
        call = fusion.calls[place]
        alone = _is_activation(call)
        if call[0] is not _sige.affine_rows.default and not alone:
            return None
        chain = _Chain(place, call[3][0])
        chain.raw = chain.rows = call[1][0]
        chain.scale, chain.shift, chain.sample = call[1][1:4]
        if alone:
            chain.activation, chain.slope = call[1][4:6]
            return fusion.grown(chain, _exchange)
        return fusion.grown(chain, _activation, _exchange)

    @staticmethod
    def call(fusion, chain):
        args = (chain.rows, chain.scale, chain.shift, chain.sample, *chain.after())
        return _sige.activate_rows.default, args, {}, [chain.result]


class _Convolution:
    """Chains that begin with a convolution or a linear layer."""

    @staticmethod
    def at(fusion, place):
        call = fusion.calls[place]
        if call[0] not in (_sige.conv_rows.default, _sige.linear_rows.default):
            return None
        chain = _Chain(place, call[3][0])
        chain.vector = chain.residual = None
        if call[0] is _sige.conv_rows.default:
            chain.convolution, chain.tiling = call[1][:5], call[1][5:]
        else:
            source, weight, bias = call[1]
            chain.convolution, chain.tiling = (source, None, weight, bias, 1), ()
        chain.count = fusion.looks[chain.result].shape[0]
        return fusion.grown(
            chain, _source_rows, _first_rows, _vector, _residual, _residual_rows, _affine, _activation, _exchange
        )

    @staticmethod
    def call(fusion, chain):
        raw = chain.result if chain.raw is None else chain.raw
        wanted = raw in fusion.at_end or any(place not in chain.places for place in fusion.users.get(raw, ()))
        args = (
            *chain.convolution, chain.count, chain.vector, chain.residual, chain.residual_rows, chain.sample, chain.scale, chain.shift,
            *chain.after(), wanted, *((None, None, *chain.tiling) if chain.tiling else ()),
        )  # fmt: skip
        second = fusion.empty() if chain.raw is None else chain.result
        return _sige.conv_rows_fused.default, args, {}, [raw if wanted else fusion.empty(), second]


def _first_rows(fusion, chain):
    place = fusion.only_user(chain.result)
    if place is None or fusion.calls[place][0] is not _aten.slice.Tensor:
        return None
    _, args, _, (result,) = fusion.calls[place]
    if args[1:3] != (0, 0) or len(args) != 4 or args[3] > chain.count:
        return None
    chain.count = args[3]
    chain.places.append(place)
    chain.result = result
    return chain


def _added(fusion, chain):
    """(place, what is added, result) of an addition to the rows that leaves their shape and dtype; or None."""
    place = fusion.only_user(chain.result)
    if place is None or fusion.calls[place][0] is not _aten.add.Tensor:
        return None
    _, args, kwargs, (result,) = fusion.calls[place]
    others = [arg for arg in args if arg != chain.result]
    if kwargs or len(args) != 2 or len(others) != 1 or not isinstance(others[0], Ref):
        return None
    mine, other, made = (fusion.looks[ref] for ref in (chain.result, others[0], result))
    if (made.shape, made.dtype, other.dtype) != (mine.shape, mine.dtype, mine.dtype) or len(other.shape) != 2:
        return None
    return place, others[0], result


def _vector(fusion, chain):
    """One vector for all rows, such as a time embedding, or one for each sample."""
    found = _added(fusion, chain)
    if found is None:
        return None
    place, vector, result = found
    rows = fusion.looks[vector].shape[0]
    if rows != 1 or chain.count == 1:
        maker = fusion.maker.get(vector)
        picked = (
            maker is not None and fusion.calls[maker][0] is _aten.index.Tensor and fusion.only_user(vector) == place
        )
        if not picked:
            return None
        table, index = fusion.calls[maker][1]
        if len(index) != 1 or len(fusion.looks[table].shape) != 2 or fusion.looks[index[0]].dtype != torch.int64:
            return None
        vector, chain.sample = table, index[0]
        chain.places.append(maker)
    chain.vector = vector
    chain.places.append(place)
    chain.result = result
    return chain


def _residual(fusion, chain):
    found = _added(fusion, chain)
    if found is None or fusion.looks[found[1]].shape != fusion.looks[chain.result].shape:
        return None
    place, chain.residual, chain.result = found
    chain.places.append(place)
    return chain


def _source_rows(fusion, chain):
    """Rows that a linear layer takes: where they lie."""
    source, index, *layer = chain.convolution
    found = fusion.picked(source, chain.places[0])
    if index is not None or found is None:
        return None
    place, source, index = found
    chain.convolution = (source, index, *layer)
    chain.places.append(place)
    return chain


def _residual_rows(fusion, chain):
    if chain.residual is None:
        return None
    found = fusion.picked(chain.residual, chain.places[-1])
    if found is None or fusion.looks[found[1]].dtype != fusion.looks[chain.result].dtype:
        return None
    place, chain.residual, chain.residual_rows = found
    chain.places.append(place)
    return chain


class _Map:
    """Chains that begin with a whole map's norm or activation."""

    @staticmethod
    def at(fusion, place):
        call = fusion.calls[place]
        if call[0] is not _sige.normalize_map.default:
            return None
        chain = _Chain(place, call[3][0])
        chain.image, *chain.norm, chain.activation, chain.slope = call[1]
        chain.convolution = None
        return fusion.grown(chain, _map_activation, _map_convolution)

    @staticmethod
    def call(fusion, chain):
        norm = (*chain.norm, chain.activation, chain.slope)
        if chain.convolution is None:
            return _sige.normalize_map.default, (chain.image, *norm), {}, [chain.result]
        return _sige.conv_map_fused.default, (chain.image, *chain.convolution, *norm), {}, [chain.result]


def _map_activation(fusion, chain):
    place = fusion.only_user(chain.result)
    if place is None or chain.activation != "none" or fusion.calls[place][0] is not _sige.normalize_map.default:
        return None
    _, (_, groups, *_, chain.activation, chain.slope), _, (chain.result,) = fusion.calls[place]
    chain.places.append(place)
    return None if groups else chain


def _map_convolution(fusion, chain):
    place = fusion.only_user(chain.result)
    if place is None or fusion.calls[place][0] is not _sige.conv_map.default:
        return None
    _, (image, *chain.convolution), _, (result,) = fusion.calls[place]
    chain.places.append(place)
    if image != chain.result:
        return None
    chain.result = result
    return chain
