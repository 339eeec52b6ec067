"""The experiments of Bordes et al. (2021) on any encoder, one file each: numbers with intervals, and an image.

Every experiment is a function of (model, images, config) that returns an `Analysis`. Nothing here knows about
command lines or HTML.
"""
