"""Curvature of a language model's loss: exact operators over any of its parameters, and estimates of their spectra.

The loss is the mean negative log-likelihood over all counted tokens of all microbatches, so that nothing below depends on
how the tokens were split. ``loss`` turns a model and a microbatch into numbers and is the only file that chooses attention
and cross-entropy, ``language_model`` says which models and heads it may take, ``agreement`` compares its loss with the model's own
before a run; ``parameters`` selects and flattens; ``operators`` and ``gauss_newton`` hold the products, ``graph`` and
``layers`` what makes those of the Hessian cheap; ``vectors`` keeps what Lanczos must remember, ``lanczos`` and ``estimators``
estimate, ``spectrum`` defines what is reported.
"""
