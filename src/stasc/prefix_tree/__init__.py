"""Sequences as a tree of tokens: common prefixes are computed once, in sampling and in fine-tuning."""
