"""Influence of training rows on a model's loss at a query.

    score(q, s) = g_q^T (C + d)^-1 g_s / N        in nats

g_q and g_s are the gradients of the summed losses of query q and row s by the chosen layers' weights, C is the curvature per counted token
over the N counted tokens of all rows, d the damping. **Sign**: it is the rise of the query's loss that is expected when row s is taken out
of the training; positive rows helped. (The derivative by the row's weight, as papers define influence, is its negative.) Without curvature
(``identity``) the unit is another, and only the order counts.

`queries` makes and compresses (C + d)^-1 g_q, `conjugate` solves for it with the exact Gauss-Newton matrix, `train` gives the rows' gradients
afresh or from a cache, `scores` multiplies, `table` makes frames.

See docs/methods/influence.md.
"""
