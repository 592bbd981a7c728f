"""The report of a sweep, or of one run: what each design choice is worth, and how certain that is.

- `__main__`: the command `python -m stasc.report`. The other parts need the extra `report`: this file imports none.
- `data`: reads run folders into a `records.Sweep`; `design` finds the settings that vary and the complete design.
- `statistics`: intervals and tests on arrays. `analysis`: applies them to a sweep, which gives a `records.Analysis`.
- `provenance`: versions and commands. `wording`: numbers and sentences. `export`, `page`: the files of a report.
"""
