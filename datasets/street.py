"""A seeded synthetic street as a Cityscapes label map of any size: sky, houses, trees, road, cars, people. No files, no licences.

Labels are Cityscapes ids, 0 to 33. Instances follow its convention: a thing (a car, a person) has 1000 times its class plus a number,
everything else its class.
"""

import torch

EGO, ROAD, SIDEWALK, BUILDING, POLE, SIGN, TREES, SKY, PERSON, CAR, BUS = 1, 7, 8, 11, 17, 20, 21, 23, 24, 26, 28


def street(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and instances, (height, width) int64 each. The same seed gives the same street; the layout is relative to the size.

    It holds no bus: an edit can put one anywhere and changes the label there.
    """
    if height < 16 or width < 16:
        raise ValueError(f"a street needs at least 16x16 pixels, not {height}x{width}.")
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: low + (high - low) * torch.rand((), generator=generator).item()  # noqa: E731
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None, :].expand(height, width)
    labels = torch.full((height, width), SKY)

    horizon, left = draw(0.42, 0.5), 0.0
    while left < 1:  # a row of houses, here and there a gap with trees
        right, top = left + draw(0.07, 0.18), draw(0.0, 0.25)
        kind, top = (BUILDING, top) if draw(0, 1) < 0.8 else (TREES, top + 0.12)
        labels[(x >= left) & (x < right) & (y > top)] = kind
        left = right
    for _ in range(4):
        centre, middle, size = draw(0.0, 1.0), draw(0.2, 0.35), draw(0.05, 0.1)
        labels[(x - centre) ** 2 + ((y - middle) / 1.6) ** 2 < size**2] = TREES
    depth = (y - horizon) / (1 - horizon)  # 0 at the horizon, 1 at our feet
    labels[depth > 0] = SIDEWALK
    labels[(depth > 0) & ((x - draw(0.42, 0.58)).abs() < 0.04 + 0.62 * depth)] = ROAD
    for _ in range(4):
        centre, top = draw(0.03, 0.97), draw(0.12, 0.25)
        labels[((x - centre).abs() < max(0.003, 0.6 / width)) & (y > top) & (depth < 0.12)] = POLE
        labels[((x - centre).abs() < 0.012) & (y > top) & (y < top + 0.07)] = SIGN

    instances = labels.clone()
    for number in range(8):  # people on the sides, cars on the road, the farther the smaller
        kind, ratio = (CAR, 0.8) if number % 2 else (PERSON, 2.4)
        near = draw(0.05, 0.4)
        tall, middle = 0.08 + 0.35 * near, draw(0.25, 0.75) if kind == CAR else draw(0.02, 0.98)
        foot, half = horizon + near * (1 - horizon), tall / ratio / 4
        where = ((x - middle).abs() < half) & (y < foot) & (y > foot - tall)
        labels[where], instances[where] = kind, 1000 * kind + number
    labels[y > 0.94], instances[y > 0.94] = EGO, EGO
    return labels, instances
