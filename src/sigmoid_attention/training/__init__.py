"""Training: data, synthetic tasks, a straight-line trainer, and a recorder of what goes on inside.

`data.corpus` reads text, `data.tokenizer` makes tokens of it and `data.batches` batches; `tasks`
has the retrieval tasks. `trainer.train` trains, `checkpoint` saves and resumes, `recorder` writes
down norms and extremes, `evaluate` scores held-out text. Needs the extra `lab`.
"""
