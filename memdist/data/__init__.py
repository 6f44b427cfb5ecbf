"""Pairs of pictures and maps: found, checked, split, decoded once, and dealt out in batches; and example data.

sources     the one source that is given -> pairs of files
survey      what a source holds, and what is wrong with it
folders     two folders, or one of side-by-side pictures, as a source
pathlist    a CSV file of paths as a source
sheet       CSV files that people write, read strictly
pairs       a file -> pixels
stored      how pixels are stored: to 8 bits a channel, or not read
area        means over areas, exact
groups      pairs that belong together
split       pairs -> train, val and test
workers     work spread over processes, with a progress bar
cache       pairs -> memory-mapped uint8 pictures and maps, shared by runs
loader      pictures and maps -> batches on the device
examine     one file, decoded once -> what is wrong with it (findings names the kinds, damage looks at bytes)
names       what the names in folders tell
check       all files of the data, alone and against one another; the cheap part that training does itself
leaks       pictures that stand twice, in one split or across splits
duplicates  perceptual hashes, near duplicates and their groups
groupfile   groups of near duplicates, written to a file
fixations   where people looked, from a file
example     example data with an honest relation between picture and map
"""
