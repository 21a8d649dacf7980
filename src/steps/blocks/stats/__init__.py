"""Statistics of evaluations: confidence intervals and correlations."""
