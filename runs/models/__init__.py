"""Models to measure, one file a family. Adding one: a YAML in conf/model/ that names its loader, here or elsewhere.

A loader module defines

    def weights_digest(model: dict) -> str                     # changes with the weights; JobFailure if missing
    def build(model: dict) -> torch.nn.Module                  # float32, on the CPU, in eval mode
    def inputs(model: dict, picture, seed) -> tuple            # arguments of one step for a (C, H, W) picture
    def forward(module, *inputs) -> torch.Tensor               # the output map of one step
    CHANGED = (0,)                                             # which inputs an edit changes
    PARTS = ("other.module",)                                  # optional: what makes its numbers besides this file
    def with_new_text(model, inputs, seed) -> (inputs, names)  # optional: another prompt, and the inputs' names in the network

``model`` is the resolved config of the group ``model``.
"""
