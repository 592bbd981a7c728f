"""What is asked and how answers are judged: datasets, prompts, rewards."""
