"""Pairs of pictures and maps: found, checked, split, decoded once, and dealt out in batches; and example data.

pairs     folders -> pairs of files; a file -> pixels
split     stems -> train, val and test
workers   work spread over processes, with a progress bar
cache     pairs -> memory-mapped uint8 pictures and maps, shared by runs
loader    pictures and maps -> batches on the device
example   example data with an honest relation between picture and map
"""
