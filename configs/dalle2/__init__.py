"""DALL·E 2 at the sizes of the paper, one file per network (arXiv:2204.06125, table 3)."""
