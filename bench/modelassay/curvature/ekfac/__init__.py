"""Kronecker-factored curvature of linear layers: factors, their eigenbases, corrected eigenvalues, and inverses made of them.

With N counted tokens over all rows, C = (1/N) sum_s G_s G_s^T is the curvature per token (nats per squared weight), G_s the gradient of
row s's summed loss. `modules` selects the layers, `examples` makes microbatches of rows, `capture` holds what a pass gives, `factors`
fits and keeps, `plan` says beforehand what that takes, `inverse` divides by (C + damping).
"""
