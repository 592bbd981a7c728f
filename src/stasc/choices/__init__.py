"""The paper's design choices, a file each: initialisation, filter, pairing, training target, fine-tuning start."""
