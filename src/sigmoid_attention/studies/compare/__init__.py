"""The comparison of sigmoid with softmax attention behind `sigmoid-attention compare`."""
