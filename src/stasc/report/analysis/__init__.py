"""What a sweep's runs show: accuracies of variants and baselines, effects of choices, notes on what is missing."""
