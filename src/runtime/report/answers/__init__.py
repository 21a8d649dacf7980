"""Answers side by side, with whatever judged them: of evaluations, and of the folder of a run."""
