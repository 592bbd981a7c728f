"""Benchmarks this project against others on the same work. `make bench` runs it; nothing else imports it.

Each contender (this project and its peers) runs in its own process, maybe with its own Python, and reads the work as
token ids from a file, so that all do the same. `contender.py` is their side of it and uses the standard library only.
"""
