"""M_0 and what becomes of it: reading weights, chat templates and configurations."""
