"""One folder per experiment: params.py (torch-free), run.py, analyse.py."""
