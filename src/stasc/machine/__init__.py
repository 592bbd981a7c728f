"""This computer: files, memory, CPU set-up, signals, paths and terminal."""
