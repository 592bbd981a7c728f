"""The computer that a run uses: files, memory, CPU set-up, signals, paths and the terminal."""
