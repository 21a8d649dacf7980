"""Statistics of evaluations: confidence intervals, correlations, and plots; no torch."""
