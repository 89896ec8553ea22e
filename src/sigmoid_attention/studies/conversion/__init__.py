"""A pretrained softmax model becomes a sigmoid model: data, training, evaluation, the page."""
