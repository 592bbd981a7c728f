"""Settings: their names, their ranges, and the stages that they decide."""
