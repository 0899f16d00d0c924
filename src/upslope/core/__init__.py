"""The theory, pure, and what every package needs: types, distributions, estimators, objectives, arrays, files."""
