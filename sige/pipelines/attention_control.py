"""Prompt-to-prompt control of cross-attention: words that stay keep looking where they looked.

    control = AttentionControl(pipe.unet, calls=10)
    with control.recording():                        # the first ten U-Net calls of the old prompt: their maps are remembered
        pipe(old, generator=seed())
    with control.injecting(change):                  # the same calls with the new prompt, the maps of unchanged words put back
        pipe(new, generator=seed())

An attention map is softmax(Q K^T): for each position the shares of the prompt's tokens. The control works through hooks on the
cross-attention layers' own projections. It reads queries and keys on their way, computes the map aside, and adds the difference
(P' - P) V to what enters the output projection. So the layers, their processors, and the path that a session records stay as they
are, and control works in plain calls, in recorded ones and in sparse ones alike. Words are re-weighted by scaling their rows of
V, which is the same as scaling their columns of the map.

Sources: Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control"; FISEdit, which uses it to find masks.
"""

import contextlib
import itertools

import torch

from sige import guards
from sige.errors import ChangedInputError, ModelError, PromptError, RecordingError
from sige.pipelines.attention_maps import Carry, Rows, by_head, check_length, cross_attentions, like, put_back_outside

_MAX_POSITIONS = 48 * 48


class AttentionControl:
    """Cross-attention maps of a U-Net's first calls, remembered and put back.

    unet: the U-Net, or the pipeline that holds it.
    calls: how many U-Net calls are remembered; later ones run as they are.
    max_positions: layers with more positions (height x width) than this keep no map and are not controlled; None: all layers.
    branch: which part of a guided call's batch reads the prompt: -1 the last, as in Stable Diffusion (unconditional first), 0 the
        first, as in InstructPix2Pix.
    device: where maps are kept, None: where they are made.

    Maps are float16, (samples, heads, positions, tokens) a layer and call.
    """

    def __init__(self, unet, calls=10, max_positions=_MAX_POSITIONS, branch=-1, device=None):
        self.unet = guards.find_model(unet)
        self.calls, self.max_positions, self.branch, self.device = calls, max_positions, branch, device
        self.layers = cross_attentions(self.unet)
        self.macs = 0  # multiply-accumulates spent aside, of the last block
        self._maps, self._pending = [], None
        self._mode = None

    # -- blocks ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self, samples=1, weights=None):
        """Remember the maps of the first calls inside the block; they replace earlier ones once it ends well.

        samples: number of pictures in a call's batch (not counting guidance).   weights: as in :meth:`weighting`, of the prompt that
        is recorded; the maps are remembered without them.
        """
        made = []
        with self._listening(_Mode(samples, factors=_factors(weights, samples), keep=made, calls=self.calls)):
            yield self
        if not made:
            raise RecordingError("no attention map was recorded: call the U-Net inside control.recording()")
        self._maps, self._pending = made, None

    @contextlib.contextmanager
    def injecting(self, change, weights=None, swapped=False, keep=False, first=0):
        """Put the remembered maps of unchanged tokens in place of the new prompt's, call by call from the first.

        change: the PromptChange from the recorded prompt, or a list of them, one a picture (None: that picture runs free).
        weights: as in :meth:`weighting`, in place of the change's own.   swapped: exchanged words take over the maps of the
        words they stand for, as Prompt-to-Prompt does; otherwise they keep their own, as in FISEdit.   keep: remember the maps that
        result, for :meth:`commit`.   first: number of the remembered call that the first one inside the block repeats.
        """
        if not self._maps:
            raise RecordingError("no attention map is remembered: run the old prompt inside control.recording() first")
        samples = next(iter(self._maps[0].values())).shape[0] if self._maps[0] else 1
        changes = self._one_each(change, samples)
        own = [None if one is None else one.weights for one in changes]
        factors = own if weights is None else _factors(weights, samples)
        carry = [None if one is None else Carry(one, swapped) for one in changes]
        made = [] if keep else None
        with self._listening(_Mode(samples, carry, factors, made, self.calls), first):
            yield self
        if keep:
            self._pending = made

    @contextlib.contextmanager
    def weighting(self, weights, samples=1):
        """Re-weight words in every call inside the block, sparse ones of an edit too: no map is needed for it.

        weights: factor of each token position, as ``prompts.token_weights`` makes them; None; or a list of these, one a picture.
        """
        with self._listening(_Mode(samples, factors=_factors(weights, samples))):
            yield self

    # -- what is remembered ------------------------------------------------------------------------------------------

    @property
    def recorded_calls(self):
        """Number of U-Net calls whose maps are remembered."""
        return len(self._maps)

    def state_bytes(self):
        """Bytes of all maps, those that wait for ``commit`` included."""
        return sum(size for _, size in self._sizes())

    def bytes_by_positions(self):
        """Bytes of the remembered maps by the layers' number of positions: {576: 17740800, ...}."""
        total = {}
        for positions, size in self._sizes():
            total[positions] = total.get(positions, 0) + size
        return total

    def put_back(self, mask, change):
        """Outside ``mask`` the maps that wait for :meth:`commit` become those remembered by now, because there the picture stays.

        Words that stay have the maps they had, exchanged words those of the words they stand for, words more their own.
        mask: bool (B, h, w) at the latents' resolution, True where the picture changes.   change: the PromptChange from the prompt of
        the remembered maps, or a list of them, one a picture.
        """
        changes = self._one_each(change, len(mask))
        for made, kept in zip(self._pending or [], self._maps):
            for name in made.keys() & kept.keys():
                for sample, one in enumerate(changes):
                    put_back_outside(made[name][sample], kept[name][sample], Carry(one, swapped=True), mask[sample])

    def commit(self):
        """The maps of the last ``injecting(..., keep=True)`` become the remembered ones: the next change starts from its prompt."""
        if not self._pending:
            raise RecordingError("no attention map waits for a commit: use injecting(change, keep=True) before")
        self._maps, self._pending = self._pending, None

    def undo(self):
        """Drop the maps of the last ``injecting(..., keep=True)``."""
        self._pending = None

    def close(self):
        """Forget every map."""
        self._maps, self._pending = [], None

    def _sizes(self):
        for call in [*self._maps, *(self._pending or [])]:
            for kept in call.values():
                yield kept.shape[2], kept.numel() * kept.element_size()

    @staticmethod
    def _one_each(change, samples):
        changes = list(change) if isinstance(change, (list, tuple)) else [change] * samples
        if len(changes) != samples:
            raise PromptError(
                f"{len(changes)} changes of prompts, but the maps of {samples} pictures are remembered: give one a picture"
            )
        return changes

    # -- hooks -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listening(self, mode, first=0):
        if self._mode is not None:
            raise RecordingError("blocks of one AttentionControl cannot be nested: end the one before the other begins")
        self._mode, self.macs, handles = mode, 0, []
        try:
            for name, layer in self.layers.items():
                handles += self._hooks(name, layer, itertools.count(first))
            yield
        finally:
            self._mode = None
            for handle in handles:
                handle.remove()

    def _hooks(self, name, layer, calls):
        """The hooks of a layer, whose every call is the next of ``calls``: hooks on the U-Net do not hear a session record it anew."""
        seen = {}

        def begin(module, args, kwargs):
            seen.clear()
            seen["call"] = next(calls)
            if kwargs.get("attention_mask") is not None:
                raise ModelError(
                    f"{name} masks tokens of the text: attention control knows unmasked cross-attention only"
                )

        def take(projection):
            return lambda module, args, out: seen.__setitem__(projection, out)

        handles = [
            layer.register_forward_pre_hook(begin, with_kwargs=True),
            layer.to_q.register_forward_hook(take("q")),
            layer.to_k.register_forward_hook(take("k")),
        ]
        if self._mode.factors is not None:
            handles.append(layer.to_v.register_forward_hook(self._weigh))
        handles.append(layer.to_v.register_forward_hook(take("v")))
        if self._mode.calls:
            handles.append(
                layer.to_out[0].register_forward_pre_hook(lambda module, args: self._meet(name, layer, seen, args))
            )
        return handles

    def _weigh(self, module, args, out):
        """Scale the rows of V that belong to weighted words, in the branch that reads the prompt."""
        with torch._C.DisableTorchFunction():
            factors = torch.ones(out.shape[:2], dtype=out.dtype)
            for place, weights in zip(self._conditional(out.shape[0]), self._mode.factors, strict=True):
                if weights is not None:
                    check_length(len(weights), out.shape[1])
                    factors[place] = torch.tensor(weights, dtype=out.dtype)
            return out * factors.to(out.device)[:, :, None]

    def _conditional(self, batch):
        """Places in a call's batch of the pictures' conditional parts."""
        samples = self._mode.samples
        if batch % samples:
            raise ChangedInputError(
                f"the U-Net's batch is {batch}, no multiple of the {samples} pictures that were announced"
            )
        branch = self.branch % (batch // samples)
        return range(branch * samples, (branch + 1) * samples)

    def _meet(self, name, layer, seen, args):
        """What enters the output projection, with this layer's maps recorded or put back."""
        mode, call = self._mode, seen["call"]
        if call >= mode.calls or mode.carry is not None and call >= len(self._maps) and mode.keep is None:
            return None
        if not {"q", "k", "v"} <= seen.keys():
            raise ModelError(
                f"{name} does not call its own to_q, to_k and to_v: use the layer's plain attention processor"
            )
        # No rule of a session may see what is computed here: it is no part of the model.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            query, mixed = Rows(seen["q"]), Rows(args[0])
            if self.max_positions is not None and query.positions > self.max_positions:
                return None
            if mixed.rows.shape[0] != query.rows.shape[0]:
                raise ModelError(f"{name} projects other positions than it queries: attention control cannot follow it")
            rows, kept = None, []
            for sample, place in enumerate(self._conditional(query.batch)):
                shares = self._shares(layer, query.of(place), seen["k"][place])
                base = self._base(name, call, sample, query, place, shares)
                if base is not None:
                    moved = mode.carry[sample](shares, base) - shares
                    values = by_head(seen["v"][place], layer.heads).float()
                    self.macs += moved.numel() * values.shape[-1]
                    start, stop = query.segment(place)
                    rows = mixed.rows.clone() if rows is None else rows
                    rows[start:stop] += (moved @ values).transpose(0, 1).flatten(1).to(rows.dtype)
                    shares = shares + moved
                kept.append(shares)
            if mode.keep is not None:
                self._keep(name, call, query, kept)
            return None if rows is None else (like(args[0], rows), *args[1:])

    def _shares(self, layer, query, key):
        """The map softmax(Q K^T), (heads, positions, tokens) in float32."""
        query, key = by_head(query, layer.heads).float(), by_head(key, layer.heads).float()
        self.macs += query.shape[0] * query.shape[1] * key.shape[1] * key.shape[2]
        return (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)

    def _base(self, name, call, sample, query, place, shares):
        """The remembered map at the positions of the query, or None where the picture runs free or nothing is remembered."""
        carry = self._mode.carry
        if carry is None or carry[sample] is None or call >= len(self._maps) or name not in self._maps[call]:
            return None
        base = self._maps[call][name][sample]
        if base.shape[0] != shares.shape[0] or base.shape[1] != query.positions:
            raise ChangedInputError(
                f"{name} has {query.positions} positions, its remembered map {base.shape[1]}: use the size of the recorded picture"
            )
        where = query.places(place)
        base = base if where is None else base.to(where.device)[:, where]
        return base.to(shares.device).float()

    def _keep(self, name, call, query, kept):
        if not query.whole:
            raise RecordingError(f"{name} runs sparsely: attention maps are recorded from calls on the whole picture")
        maps = torch.stack(kept).half()
        store = self._mode.keep
        store += [{} for _ in range(call + 1 - len(store))]
        store[call][name] = maps if self.device is None else maps.to(self.device)


class _Mode:
    """What a block does: samples, changes to carry out, factors of tokens, the list that keeps maps, number of calls it acts in."""

    def __init__(self, samples, carry=None, factors=None, keep=None, calls=0):
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ChangedInputError(f"attention control for {samples!r} pictures: give their number, 1 or more")
        self.samples, self.carry, self.keep, self.calls = samples, carry, keep, calls
        self.factors = factors if factors and any(one is not None for one in factors) else None


def _factors(weights, samples):
    """Weights of each picture from one tuple for all or a list of tuples."""
    factors = list(weights) if isinstance(weights, list) else [weights] * samples
    if len(factors) != samples:
        raise PromptError(f"weights for {len(factors)} pictures, but there are {samples}: give one tuple a picture")
    return factors
