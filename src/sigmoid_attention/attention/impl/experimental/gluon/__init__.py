"""Kernels for Hopper in Gluon, with layouts, pipelines and the work of each warp written out."""
