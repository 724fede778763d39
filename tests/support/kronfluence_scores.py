"""Scores of the same rows by Kronfluence 1.0.1, in float64 on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelassay.training.rows import IGNORED, Row


def kronfluence_scores(
    model: Any, rows: Sequence[Row], queries: Sequence[Row], modules: Sequence[str], folder: Path, strategy: str
) -> Tensor:
    """[Q, rows]; factors of the empirical Fisher matrix, damping a tenth of the mean eigenvalue."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task

        class LanguageModelling(Task):
            def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
                logits = model(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False).logits[:, :-1]
                return F.cross_entropy(
                    logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum", ignore_index=IGNORED
                )

            def compute_measurement(self, batch: Any, model: Any) -> Tensor:
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self) -> list[str]:
                return list(modules)

            def get_attention_mask(self, batch: Any) -> Tensor:
                mask: Tensor = batch["mask"]
                return mask

        length = max(len(row.ids) for row in (*rows, *queries))

        def dataset(part: Sequence[Row]) -> list[dict[str, Tensor]]:
            return [{"ids": torch.tensor([*row.ids, *[0] * (length - len(row.ids))]),
                     "labels": torch.tensor([*row.labels, *[IGNORED] * (length - len(row.ids))]),
                     "mask": torch.tensor([1] * len(row.ids) + [0] * (length - len(row.ids)))} for row in part]  # fmt: skip

        task = LanguageModelling()
        analyzer = Analyzer(
            "peer", prepare_model(deepcopy(model), task), task, cpu=True, output_dir=str(folder), disable_tqdm=True
        )
        wide: dict[str, Any] = {"amp_dtype": None}
        factor_args = FactorArguments(strategy=strategy, use_empirical_fisher=True, activation_covariance_dtype=torch.float64,
                                      gradient_covariance_dtype=torch.float64, lambda_dtype=torch.float64, **wide)  # fmt: skip
        if strategy != "identity":
            analyzer.fit_all_factors("factors", dataset(rows), per_device_batch_size=3, factor_args=factor_args)
        else:
            analyzer.fit_all_factors(
                "factors", dataset(rows), per_device_batch_size=3, factor_args=FactorArguments(strategy="identity")
            )
        score_args = ScoreArguments(damping_factor=None, per_sample_gradient_dtype=torch.float64, precondition_dtype=torch.float64,
                                    score_dtype=torch.float64, **wide)  # fmt: skip
        analyzer.compute_pairwise_scores("scores", "factors", dataset(queries), dataset(rows), per_device_query_batch_size=2,
                                         per_device_train_batch_size=3, score_args=score_args)  # fmt: skip
        scores: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
        return scores
