"""The operators of the engine, as functions: what each does, takes and gives.

Everything works on *rows*: a feature map of shape (B, C, H, W) is kept channels-last as a matrix of ``B*H*W`` rows with
``C`` columns, and an edit touches some of the rows. Flat row numbers are ``(b*H + y)*W + x``.

The operators are registered with ``torch.library`` under ``torch.ops.sige`` so that dispatch modes (MAC counters, fake
tensors, profilers) see them by name. Each call goes to the backend that ``sige.kernels.backends`` names for its device.
"""

import torch

from sige.kernels import activations, backends, schemas  # noqa: F401

_listening = torch._C._len_torch_dispatch_stack


def _call(operator, *args):
    """Run an operator: through PyTorch's dispatcher when anyone listens there (a counter, fake tensors, a compiler), else straight
    to the backend, which saves some 10 microseconds a call."""
    if torch.compiler.is_compiling() or args[0].is_meta or _listening():  # a compiler cannot trace the last one
        return getattr(torch.ops.sige, operator)(*args)
    return backends.implementation(operator, args[0].device.type)(*args)


def gather_rows(source, index):
    """Rows of a map: ``source`` (N, C), ``index`` (n,) int64 in [0, N). Returns (n, C)."""
    return _call("gather_rows", source, index)


def scatter_rows_(target, index, rows):
    """Write ``rows`` (n, C) into ``target`` (N, C) at distinct row numbers ``index`` (n,), in place; nothing is copied."""
    _call("scatter_rows_", target, index, rows)


def exchange_rows_(target, index, rows):
    """`scatter_rows_` that returns the rows (n, C) which were there before, in the target's dtype: what undoes it."""
    return _call("exchange_rows_", target, index, rows)


def conv_rows(source, index, weight, bias, groups=1, tiling=None):
    """Convolution at chosen positions.

    ``source`` (N, C) is the input map; ``index`` (n, kh*kw) int64 names, for each output position and each tap in row-major
    order, the source row it reads, or -1 where the tap lies outside the map (zero padding); ``weight`` (O, C/groups, kh, kw);
    ``bias`` (O,) or None. Stride, dilation, padding and nearest up-sampling are all in ``index``.
    ``source`` may be remembered in another dtype than the weight's. Returns (n, O) in the weight's dtype.

    ``tiling`` (H, W, h, w) is the caller's word that ``source`` holds maps (H, W), that the positions come in whole tiles (h, w), tile
    after tile and each in row-major order, and that ``index`` is what a convolution of odd kernel, stride and dilation 1 that keeps the
    maps' size reads there. A backend may then leave ``index`` aside; the result is the same.
    """
    return _call("conv_rows", source, index, weight, bias, groups, tiling)


def conv_tiles(source, index, tile, weight, bias, groups=1):
    """Convolution of stride and dilation 1 at whole tiles: what ``conv_rows`` computes, with fewer reads.

    ``tile`` is the tiles' (h, w), or the side of square ones. ``index`` (T, (h+kh-1)*(w+kw-1)) int64 names the source rows of each
    tile's input window in row-major order, -1 outside the map. Returns (T*h*w, O), tile after tile.
    """
    tile = (tile, tile) if isinstance(tile, int) else tuple(tile)
    return _call("conv_tiles", source, index, tile, weight, bias, groups)


def conv_map(image, weight, bias, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Convolution of a whole map: ``image`` (B, C, H, W), ``weight`` (O, C/groups, kh, kw). Returns (B, O, H', W'), channels-last."""
    return _call("conv_map", image, weight, bias, stride, padding, dilation, groups)


def linear_rows(rows, weight, bias):
    """``rows`` (n, C) times ``weight`` (O, C), or (O, C, 1, 1), transposed, plus ``bias`` (O,) or None. Returns (n, O)."""
    return _call("linear_rows", rows, weight, bias)


def affine_rows(rows, scale, shift, sample=None):
    """``rows * scale + shift`` with ``scale``/``shift`` (B, C) chosen by ``sample`` (n,), or (1, C) with ``sample`` None."""
    return _call("affine_rows", rows, scale, shift, sample)


def activate_rows(
    rows, scale=None, shift=None, sample=None, activation="none", slope=0.0, target=None, positions=None, rest=None, rest_rows=None
):  # fmt: skip
    """`affine_rows` where ``scale`` and ``shift`` are given, an activation, and with ``target`` `exchange_rows_`, in one.

    ``activation`` is one of ``sige.kernels.activations.ACTIVATIONS``; ``slope`` is that of ``leaky_relu``. Returns the activated rows
    (n, C); with ``target`` (N, C) they are written there at distinct ``positions`` (n,), and what was there is returned.

    ``rest`` holds further channels of the rows, in their dtype, as if both had been concatenated before: (n, D), or a map (M, D) of
    other memory than ``target`` with ``rest_rows`` (n,) in [0, M) picking one for each row. Raises ValueError for an unknown
    activation.
    """
    activation = activations.check(activation)
    if target is None and rest is None and torch.compiler.is_compiling():
        return torch.ops.sige.activate_rows.unwritten(rows, scale, shift, sample, activation, float(slope))
    return _call(
        "activate_rows", rows, scale, shift, sample, activation, float(slope), target, positions, rest, rest_rows
    )


def conv_rows_fused(
    source, index, weight, bias=None, groups=1, count=None, vector=None, residual=None, residual_rows=None, sample=None,
    scale=None, shift=None, activation="none", slope=0.0, target=None, positions=None, raw=True, rest=None, rest_rows=None,
    tiling=None,
):  # fmt: skip
    """`conv_rows`, or `linear_rows` where ``index`` is None, and what usually follows it, in one; for replayed steps.

    With ``index`` (n,) it is `linear_rows` of those rows of ``source``.

    The first ``count`` rows (all, where None) get ``vector`` and then ``residual`` added: the raw rows. ``vector`` is (1, O), or
    (B, O) with ``sample`` (count,) picking one for each row; ``residual`` is (count, O), or (M, O) with ``residual_rows`` (count,) in
    [0, M) picking one for each row, of other memory than ``target``. The raw rows, through ``scale`` and ``shift`` as `affine_rows`
    does and through the activation, are the activated rows. With ``target`` these go there at ``positions``, as by `exchange_rows_`.
    ``rest`` and ``rest_rows`` are further channels of ``source``, as `activate_rows` has them; ``groups`` is then 1. ``tiling`` is
    that of `conv_rows`, of the first ``count`` rows.

    Returns the raw rows, empty (0, O) where ``raw`` is False, and the activated ones, or with ``target`` the rows that were there, or,
    where there is neither scale nor activation nor target, an empty (0, O). On a GPU nothing between is rounded. Raises ValueError
    for an unknown activation.
    """
    activation = activations.check(activation)
    if count is None:
        count = len(source if index is None else index)
    return _call(
        "conv_rows_fused", source, index, weight, bias, groups, count, vector, residual, residual_rows, sample, scale, shift,
        activation, float(slope), target, positions, raw, rest, rest_rows, tiling,
    )  # fmt: skip


def normalize_map(image, groups, weight=None, bias=None, eps=1e-5, activation="none", slope=0.0):
    """A whole map through a group norm and an activation.

    ``image`` (B, C, H, W); ``groups`` the norm's number of groups, 0 for no norm; ``weight`` and ``bias`` (C,) or None; ``eps`` is
    added to the variance; ``activation`` is one of ``sige.kernels.activations.ACTIVATIONS``, ``slope`` that of ``leaky_relu``. Returns
    a new map (B, C, H, W), channels-last. Raises ValueError for an unknown activation.
    """
    activation = activations.check(activation)
    return _call("normalize_map", image, groups, weight, bias, float(eps), activation, float(slope))


def conv_map_fused(
    image, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, norm_groups=0, norm_weight=None,
    norm_bias=None, eps=1e-5, activation="none", slope=0.0,
):  # fmt: skip
    """`normalize_map` by the last six arguments and `conv_map` by those before, in one; for replayed steps."""
    activation = activations.check(activation)
    return _call(
        "conv_map_fused", image, weight, bias, stride, padding, dilation, groups, norm_groups, norm_weight, norm_bias, float(eps),
        activation, float(slope),
    )  # fmt: skip


def update_statistics_(
    rows, sums, tile_index, centre, totals, sample=None, weight=None, bias=None, groups=1, map_values=1, eps=1e-5
):
    """A group normalisation's statistics after an edit, of which only the tiles that it touched are summed again.

    Of each tile and channel group the sum of x - c and of (x - c)^2 is remembered, c being the group's fixed centre; their totals over
    a sample's map give mean = c + first/N and variance = second/N - (first/N)^2, and what an edit adds to the totals is the new sums
    less the old ones, both as they are remembered.

    ``rows`` (T*P, C) holds whole tiles of P positions, one after the other; ``sums`` (tiles of all maps, 2*groups), first sums and then
    second ones, is brought up to date in place at the distinct row numbers ``tile_index`` (T,); ``centre`` (B, groups) and ``totals``
    (B, 2*groups) are float64, or float32 on a device that has none; ``sample`` (T,) is each tile's sample, None where B is 1;
    ``weight`` and ``bias`` (C,) or None; ``map_values`` is N, the values of a group in a map; ``eps`` is added to the variance.
    Returns the rows of ``sums`` that were there before (T, 2*groups), the new totals, and ``scale`` and ``shift`` (B, C) in the rows'
    dtype for `affine_rows`.
    """
    args = (rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values, float(eps))
    return _call("update_statistics_", *args)


def normalize_rows_(
    rows, rest, rest_rows, sums, tile_index, centre, totals, sample=None, weight=None, bias=None, groups=1, map_values=1, eps=1e-5,
    activation="none", slope=0.0, target=None, positions=None,
):  # fmt: skip
    """`update_statistics_` and, with the scale and shift that it gives, `activate_rows`, in one; for replayed steps.

    ``rows`` (T*P, C); ``rest`` and ``rest_rows`` as `activate_rows` has them, or None; from ``sums`` to ``eps`` the arguments of
    `update_statistics_`; the others are those of `activate_rows`, for each row the scale and shift of its tile's sample.

    Returns the rows of ``sums`` that were there before (T, 2*groups), the new totals, and the activated rows or, with ``target``, the
    rows that were there. On a GPU scale and shift are not rounded. Raises ValueError for an unknown activation.
    """
    activation = activations.check(activation)
    return _call(
        "normalize_rows_", rows, rest, rest_rows, sums, tile_index, centre, totals, sample, weight, bias, groups, map_values,
        float(eps), activation, float(slope), target, positions,
    )  # fmt: skip


def project_rows_(
    rows, query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, keys, values, positions
):
    """Queries, keys and values of rows that an edit changes: three times `linear_rows`, of which the second and third result go into
    maps by `exchange_rows_`, in one; for replayed steps.

    ``rows`` (n, C); the weights (O, C), or (O, C, 1, 1), and biases (O,) or None; the maps ``keys`` and ``values`` (N, O), of which
    the rows at the distinct ``positions`` (n,) are written in place. Returns the queries (n, O) and the rows of ``keys`` and ``values``
    that were there before (n, O).
    """
    args = (rows, query_weight, query_bias, key_weight, key_bias, value_weight, value_bias, keys, values, positions)
    return _call("project_rows_", *args)


def attend(query, key, value, mask=None, scale=None):
    """Attention: softmax(query key^T * scale + mask) value.

    ``query`` (B, heads, n, d), ``key`` (B, heads, m, d), ``value`` (B, heads, m, e); ``mask`` broadcastable to (B, heads, n, m), bool
    (True takes part) or added to the scores; ``scale`` 1/sqrt(d) where None. Returns (B, heads, n, e), in memory
    token after token: (B, n, heads, e).
    """
    return _call("attend", query, key, value, mask, query.shape[-1] ** -0.5 if scale is None else float(scale))


def compact(mask, capacity):
    """List of a mask's active rows, of a fixed length, so that its shape says nothing of the mask.

    ``mask`` (B, H, W) bool. Returns ``rows`` (capacity,) int64, the sorted flat row numbers and then -1, and ``count`` (1,) int32, how
    many there are. A count above ``capacity`` comes with a list of -1 alone: half an edit is never taken for a whole one. On a GPU the
    host waits for nothing. Raises ValueError for a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity {capacity} holds no row: it must be at least 1")
    return _call("compact", mask, capacity)
