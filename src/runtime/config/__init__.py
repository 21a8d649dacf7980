"""The config of a step: YAML files, overrides and the step's own schema."""
