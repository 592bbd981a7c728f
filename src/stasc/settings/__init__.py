"""What settings mean: their names, ranges, and the stages they decide."""
