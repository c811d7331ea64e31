"""Replaying sparse steps: what a step did, operator by operator, is noted once and carried out again without the model's Python."""
