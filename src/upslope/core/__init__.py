"""Pure theory and shared foundations: types, distributions, estimators, objectives, arrays, files."""
