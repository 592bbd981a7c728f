"""How fast is this project beside others, on the same work? `make bench` answers; nothing else imports this package.

Each contender (this project and its peers) runs in a process of its own, maybe with another Python, and reads the work
as token ids from a file, so that all do the same. `contender.py` is what such a process needs and uses the standard
library only.
"""
