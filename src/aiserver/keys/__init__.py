"""API keys, the administrator's secret, and what each may do."""
