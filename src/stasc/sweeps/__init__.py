"""Many runs: what their jobs will need and take."""
