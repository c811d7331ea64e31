"""How much of the machine other processes took while something was timed."""

import time


class Others:
    """``others = Others(); ...work...; others.share()``: the machine's busy time less our own, over the cores' time.

    0 is a machine of our own; 0.5 on two cores means that others kept one of them busy.
    """

    def __init__(self):
        import psutil

        self._psutil = psutil
        self._own = psutil.Process()
        self._cores = psutil.cpu_count() or 1
        self._before = self._read()

    def _read(self) -> tuple[float, float, float]:
        times = self._psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is part of user time on Linux and must not count twice.
        double = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = self._own.cpu_times()
        return time.perf_counter(), sum(times) - idle - double, own.user + own.system

    def share(self) -> float:
        """Share of the machine taken by others since the last call, 0..1."""
        after = self._read()
        wall, busy, own = (new - old for new, old in zip(after, self._before, strict=True))
        self._before = after
        return min(1.0, max(0.0, (busy - own) / (wall * self._cores))) if wall > 0 else 0.0


def quiet_rounds(shares: list[float], limit: float) -> list[int]:
    """Rounds in which others took at most ``limit``; all of them where fewer than three, or than half, were quiet."""
    quiet = [number for number, share in enumerate(shares) if share <= limit]
    return quiet if len(quiet) >= max(3, len(shares) / 2) else list(range(len(shares)))
