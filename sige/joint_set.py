"""Joint sequences: text tokens and the tokens of maps, one after the other, as the active set of a map of one row.

Multimodal transformers attend over text and image at once. Seen as a map of height 1 and width L, such a sequence needs no rule
of its own: linear layers, norms and attention work on its rows as on any other's.
"""

import torch

from sige.active_set import ActiveSet


class JointSet(ActiveSet):
    """Active positions of a sequence of L positions: (B, 1, L).

    parts: in the order of the sequence, each an int n (n positions that are always active, such as text) or the ActiveSet of a map.
    sizes: the number of positions of each part.
    places: for each part and sample the (start, stop) of its rows. A sample's rows are those of its parts, in order.
    """

    def __init__(self, parts, sizes, places, batch, index, segments, device):
        name = "joint " + "+".join(map(str, sizes))
        super().__init__(batch, 1, sum(sizes), index, segments=segments, device=device, kind=name)
        self.parts, self.sizes, self.places = parts, sizes, places

    def on(self, device):
        """This set for rows on ``device``, see :meth:`ActiveSet.on`."""
        if torch.device(device) == self.device:
            return self
        parts = tuple(part if isinstance(part, int) else part.on(device) for part in self.parts)
        return _moved(self, parts, device)

    def starts(self):
        """Where each part begins in the sequence, and where the last one ends."""
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        return starts

    def join(self, rows):
        """Rows of the sequence from those of each part: a list of (n_i, features...), n_i = B * n for an int n."""
        if self.batch == 1:
            return torch.cat(rows)
        return torch.cat(
            [
                rows[i][slice(*_segment(part, sample))]
                for sample in range(self.batch)
                for i, part in enumerate(self.parts)
            ]
        )

    def part_rows(self, rows, first, last):
        """Rows of the parts ``first`` to ``last - 1``, sample after sample. A view when there is one sample."""
        spans = [(self.places[first][b][0], self.places[last - 1][b][1]) for b in range(self.batch)]
        if len(spans) == 1:
            return rows[slice(*spans[0])]
        return torch.cat([rows[slice(*span)] for span in spans])


def joint_set(parts):
    """The JointSet of ``parts`` (at least one of them an ActiveSet). Made once, then kept with the first of the sets."""
    first = next(part for part in parts if isinstance(part, ActiveSet))
    key = tuple(
        part if isinstance(part, int) else id(part) for part in parts
    )  # ids are safe: the joint set holds its parts
    known = first.__dict__.setdefault("_joints", {})
    if key not in known:
        hosts = tuple(part if isinstance(part, int) else _host(part) for part in parts)
        if any(host is not part for host, part in zip(hosts, parts)):
            known[key] = _moved(joint_set(hosts), tuple(parts), first.device)
        else:
            known[key] = _made(tuple(parts), first.batch, first.device)
    return known[key]


def text_set(image, length, active):
    """Set of a text of ``length`` positions beside the map of ``image``: all of them (``active``) or none. Kept with ``image``."""
    known = image.__dict__.setdefault("_texts", {})
    if (length, active) not in known:
        if active:
            made = ActiveSet.everything(image.batch, 1, length, image.device, kind="text")
        else:
            empty = torch.empty(0, dtype=torch.int64)
            made = ActiveSet(image.batch, 1, length, empty, segments=[(0, 0)] * image.batch, kind="text").on(
                image.device
            )
        known[length, active] = made
    return known[length, active]


def _host(part):
    """A set on the meta device as one that has its data."""
    if part.device.type != "meta":
        return part
    return part._host or ActiveSet.everything(part.batch, part.height, part.width, kind=part.kind)


def _segment(part, sample):
    """(start, stop) of a sample's rows among the rows of a part."""
    return (sample * part, sample * part + part) if isinstance(part, int) else part.segments[sample]


def _made(parts, batch, device):
    sizes = [part if isinstance(part, int) else part.height * part.width for part in parts]
    full = all(isinstance(part, int) or part.full for part in parts)
    length, stop = sum(sizes), 0
    pieces, segments, places = [], [], [[] for _ in parts]
    for sample in range(batch):
        begin, offset = stop, sample * length
        for i, (part, size) in enumerate(zip(parts, sizes)):
            start, end = _segment(part, sample)
            places[i].append((stop, stop + end - start))
            stop += end - start
            if not full:
                inside = torch.arange(start, end, device=device) if isinstance(part, int) else part.positions[start:end]
                pieces.append(inside + (offset - sample * size))
            offset += size
        segments.append((begin, stop))
    index = None if full else torch.cat(pieces)
    return JointSet(parts, sizes, places, batch, index, segments, device)


def _moved(joint, parts, device):
    index = None if joint.full else joint.index.to(device)
    moved = JointSet(parts, joint.sizes, joint.places, joint.batch, index, joint.segments, device)
    moved._host = joint if moved.device.type == "meta" else None
    return moved
