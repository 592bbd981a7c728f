"""Fine-tuning: what is trained, on which loss, by which loop."""
