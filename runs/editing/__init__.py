"""Editing a whole picture by a changed prompt, one method a file: FISEdit and the methods that it is compared with.

A method's file defines

    KIND = "text"                       # of pipeline it runs: text | inpaint | instruct
    OPTIONS = {"strength": 0.8}         # its own settings and their values where a task gives none
    def edit(pipe, task: EditTask) -> EditResult

and stands in ``registry.EDITORS``. All are on one footing: the same prompts, start noise of the same seed, steps, guidance scale
and picture size, the pipeline's own scheduler. Methods that run the sampler backwards need DDIM for it, and use it with the noise
schedule of the pipeline's scheduler.

    result = registry.edit("sdedit", pipe, EditTask("a dog", "a cat", seed=0, steps=50, guidance_scale=7.5, height=768, width=768))

What is counted as the edit starts from the picture that the old prompt gave: making that picture is the part ``original`` and not
counted, except in Prompt-to-Prompt, which makes both at once.
"""
