"""Yes or no from a device, without waiting for it."""

import torch


def waits(device):
    """Whether the host would wait for a device until that has done all that it was given, to hear whether a number on it is true."""
    return device.type not in ("cpu", "meta")


class Answers:
    """What is asked of tensors during an edit: on a CPU answered at once, on any other device all together when the edit ends."""

    def __init__(self):
        self._asked = []

    def ask(self, wrong, complain):
        """Where ``wrong``, a bool tensor of one element, is True, ``complain()`` is called, which raises: now or in :meth:`settle`."""
        if waits(wrong.device):
            self._asked.append((wrong, complain))
        elif wrong:
            complain()

    def settle(self):
        """Hear what was asked so far; the first complaint is raised."""
        asked, self._asked = self._asked, []
        if not asked:
            return
        device = asked[0][0].device
        told = torch.stack([wrong.to(device).reshape(()) for wrong, _ in asked]).tolist()
        for wrong, (_, complain) in zip(told, asked):
            if wrong:
                complain()
