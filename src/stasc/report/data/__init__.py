"""Reads the folders of a sweep's runs."""
