"""Work on remembered state, which must be the same whatever mode the caller's code runs in."""

import functools

import torch


def plain(function):
    """``function`` outside inference mode and without gradients: tensors made in it can be written to anywhere."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run
