"""Rewards: how good is an answer, in [0, 1]?"""
