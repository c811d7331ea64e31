"""Sessions on diffusers pipelines. diffusers is imported inside functions only."""
