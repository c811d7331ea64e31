"""Where a session's remembered state lives: on the device, in the host's memory, on disk; and how much of it an edit moves.

remembered  what a session says of its state, saving and loading it
folder      a whole session in a folder: written crash-safely, verified when opened
files       one file of tensors, written piece by piece, mapped into memory
coding      values and step memories as JSON and tensors
tiers       which steps lie where under a memory budget
budget      sizes that a budget is compared with
stored      a map that is not used where it lies
packed      maps in 8 bits with a scale
needs       which rows of a map an edit reads
loader      a thread that brings these rows into buffers ahead of the model
delta       what an edit changed, until it is committed
travel      bytes that an edit reads
"""
