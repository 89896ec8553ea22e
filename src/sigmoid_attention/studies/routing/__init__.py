"""Sigmoid against softmax routing on text, at equal compute."""
