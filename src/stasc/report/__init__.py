"""The report of a sweep, or of one run: what each design choice is worth, and how sure that is."""
