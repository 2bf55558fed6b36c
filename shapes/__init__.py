"""The shapes world: scenes with an exact meaning, their renderer, an exact judge, and models."""
