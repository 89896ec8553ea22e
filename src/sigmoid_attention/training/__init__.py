"""Training: data, synthetic tasks, one training loop, and a recorder of internal statistics.

`data.corpus` reads text, `data.tokenizer` and `data.batches` make tokens and batches of it, and
`tasks` has the retrieval tasks. `trainer.train` trains, `checkpoint` saves and resumes, `recorder`
writes norms and extremes, and `evaluate` scores held-out text. `text_run` combines them for a
language model. Needs the extra `lab`.
"""
