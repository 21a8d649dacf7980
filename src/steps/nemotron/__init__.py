"""Steps that NVIDIA Nemotron's runner would start, started by ours."""
