"""One frozen dataclass of settings, and what it builds."""
