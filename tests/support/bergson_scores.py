"""Scores of the same rows by bergson 2.5.1, on the CPU; it reads a model and rows from folders, the rows as token ids."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.training.rows import Row
from support.byte_tokenizer import byte_tokenizer


def bergson_scores(model: Any, rows: Sequence[Row], queries: Sequence[Row], folder: Path, *, corrected: bool) -> Tensor:
    """[Q, rows] by EKFAC (``corrected``) or KFAC of the feed-forward layers, on the data's labels, damping a tenth of the mean eigenvalue."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        from bergson import DataConfig, IndexConfig, PreprocessConfig, QuerySetConfig, ScoreConfig
        from bergson.config.config import HessianConfig, HessianPipelineConfig
        from bergson.data import load_scores
        from bergson.hessians.pipeline import hessian_pipeline
        from datasets import Dataset

        model.save_pretrained(folder / "model")
        byte_tokenizer(model_max_length=64).save_pretrained(folder / "model")
        for name, part in (("rows", rows), ("queries", queries)):
            lines = [{"input_ids": list(row.ids), "labels": list(row.labels), "length": len(row.ids)} for row in part]
            Dataset.from_list(lines).save_to_disk(folder / name)
        index = IndexConfig(
            run_path=str(folder / "run"), model=str(folder / "model"), precision="fp64", token_batch_size=16, include_bias=True,
            data=DataConfig(dataset=str(folder / "rows")), filter_modules="*self_attn*,*lm_head*", force_math_sdp=True,
        )  # fmt: skip
        hessian = HessianConfig(method="kfac", ev_correction=corrected, hessian_dtype="fp64", use_dataset_labels=True)
        asked = HessianPipelineConfig(query=QuerySetConfig(dataset=str(folder / "queries")))
        hessian_pipeline(index, hessian, ScoreConfig(), PreprocessConfig(), asked)
        return torch.from_numpy(load_scores(folder / "run" / "scores")[:].copy()).T
