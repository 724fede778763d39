"""What lm-eval itself makes of the tasks' files: ``python -m support.lm_eval_scores`` in tests/ writes it down where lm_eval 0.4.13 is installed."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from modelassay.evaluation.tasks import MMLU_COLUMNS, TaskFile
from support.byte_tokenizer import byte_tokenizer
from support.tiny_models import make_model

CASES = Path(__file__).parents[1] / "cases/tasks"
RECORDED = CASES / "lm_eval.json"
FILES = [
    TaskFile(task=path.stem, path=path)
    for path in sorted(CASES.glob("*_*")) + [CASES / "hellaswag.jsonl"]
    if path != RECORDED
]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
WINDOW = 200


def made() -> tuple[Any, Any]:
    """A model with a window that some items are longer than, and a tokenizer that begins each text."""
    from tokenizers.processors import TemplateProcessing

    model = make_model("llama", vocab_size=300, max_position_embeddings=WINDOW)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    tokenizer = byte_tokenizer(chat_template=CHAT)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return model, tokenizer


def rows_of(file: TaskFile) -> list[dict[str, Any]]:
    """The columns that lm-eval's definition reads."""
    import csv

    if file.path.suffix == ".csv":
        with file.path.open(newline="") as text:
            return [
                dict(zip(MMLU_COLUMNS, (row[0], row[1:5], "ABCD".index(row[5])), strict=True))
                for row in csv.reader(text)
            ]
    return [json.loads(line) for line in file.path.read_text().split("\n") if line]


class Rows(list[dict[str, Any]]):
    """As much of a data set as lm-eval asks for."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])

    def map(self, change: Any) -> Rows:
        return Rows({**row, **change(row)} for row in self)


def lm_eval_scores(*, chat: bool) -> dict[str, list[dict[str, Any]]]:
    """Of each task's items what is asked, the log-probabilities and the metrics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        import lm_eval
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks._yaml_loader import load_yaml

        try:
            model, tokenizer = made()
            peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
            tasks = {}
            for file in FILES:
                below = {"mmlu": f"mmlu/default/{file.task}", "arc": f"arc/{file.task}", "hell": "hellaswag/hellaswag"}
                name = next(path for start, path in below.items() if file.task.startswith(start))
                config = load_yaml(Path(lm_eval.__file__).parent / f"tasks/{name}.yaml")
                rows = Rows(rows_of(file))
                parts = {"test": rows, "validation": rows, "train": rows, "dev": rows}
                tasks[file.task] = ConfigurableTask(config={**config, "custom_dataset": lambda parts=parts, **_: parts})
            result = evaluate(lm=peer, task_dict=tasks, log_samples=True, apply_chat_template=chat, bootstrap_iters=0)
        finally:
            logging.disable(logging.NOTSET)
    return {
        task: [{"asked": [[argument["arg_0"], argument["arg_1"]] if isinstance(argument, dict) else list(argument) for argument in
                          (sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"])],
                "log_probabilities": [float(answer[0][0]) for answer in sample["resps"]],
                "metrics": {name: sample[name] for name in ("acc", "acc_norm") if name in sample}}
               for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for task, samples in result["samples"].items()
    }  # fmt: skip


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({name: lm_eval_scores(chat=chat) for name, chat in (("plain", False), ("chat", True))},
                                   indent=1, ensure_ascii=False) + "\n")  # fmt: skip
