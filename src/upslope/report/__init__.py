"""Reports: HTML pages of figures and tables."""
