"""Converts a pretrained softmax model to sigmoid attention: data, training, evaluation, page."""
