"""Profiles of a few steps of a run that trains: what is recorded, by which tool, and what is made of it.

A profile belongs to a launch, not to a recipe: it changes no result, and a tool that fails is given up with a warning
while training goes on. `docs/performance.md` shows how to take one and how to read it.
"""

from adadistill.core.profiling.recorders import open_profile, under_nsys
from adadistill.core.profiling.step_profile import NO_PROFILE, ProfileRequest, StepProfile, StepWindow

__all__ = ["NO_PROFILE", "ProfileRequest", "StepProfile", "StepWindow", "open_profile", "under_nsys"]
