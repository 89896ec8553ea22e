"""The recipe study: which position, norms, bias and options train a sigmoid decoder best.

`candidates` names the models, `setting` the sizes and the seeds, `run` trains, `measure` tests, and
`standing` judges by the rule that it states.
"""
