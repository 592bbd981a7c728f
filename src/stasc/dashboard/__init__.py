"""A W&B report on a project's runs. `python -m stasc.dashboard` makes it; nothing else imports this package."""
