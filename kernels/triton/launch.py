"""Launching Triton kernels: on the right device, or in the interpreter, or not at all with a reason.

Every launch goes through `run`, so that a test can catch what would be launched and compile it for a GPU that is not there.
"""

import torch
import triton
import triton.language as tl

from sige.kernels.backends import Declined

# Read when Triton itself was first imported: setting the variable later changes nothing for functions already made.
INTERPRETED = bool(triton.knobs.runtime.interpret)
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_MULTIPROCESSORS_ELSEWHERE = 132  # where no GPU can be asked: an H100's or H200's


def serve(*tensors):
    """Decline floating-point tensors of a dtype that the kernels do not know, and CPU tensors outside the interpreter."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES:
            raise Declined(
                f"its kernels know float32, float16 and bfloat16, not {str(tensor.dtype).removeprefix('torch.')}"
            )
        on_gpu(tensor)


def on_gpu(tensor):
    """Decline a CPU tensor outside the interpreter."""
    if tensor.device.type == "cpu" and not INTERPRETED:
        raise Declined("TRITON_INTERPRET=1 must be set before Triton is first imported")


def precise():
    """How ``tl.dot`` multiplies float32: "ieee", or "tf32" when ``torch.set_float32_matmul_precision`` allows it ("high", "medium")."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def multiprocessors(device):
    """Number of multiprocessors of a GPU, or a Hopper's where there is none to ask."""
    if device.type != "cuda":
        return _MULTIPROCESSORS_ELSEWHERE
    return torch.cuda.get_device_properties(device).multi_processor_count


def copies_boxes(device):
    """Whether a GPU has a tensor memory accelerator and shared memory for what it copies, or Triton's interpreter stands for one.

    Hopper and the data centre's Blackwell do (compute capability 9 and 10); the desktop's (12) has 99 KiB a block.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


def big(*tensors, elements=0):
    """Whether some of ``tensors``, None left out, reaches over 2^31 elements or more, or ``elements`` are so many: places in it then
    need numbers of 64 bits."""
    reach = [sum((side - 1) * step for side, step in zip(x.shape, x.stride())) for x in tensors if x is not None]
    return max([elements, *reach]) >= 1 << 31


def run(kernel, grid, arguments, warps=4, stages=2):
    """Launch ``kernel`` over ``grid`` with ``arguments``, a dict that names every parameter, compile-time ones included.

    Triton launches on the current device, which need not be the tensors'; an empty grid is no launch.
    """
    if 0 in grid:
        return
    device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](**arguments, num_warps=warps, num_stages=stages)
    else:
        kernel[grid](**arguments, num_warps=warps, num_stages=stages)
